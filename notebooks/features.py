"""Print features of a converted folder with plain Transformers; hf_xlmr is not imported."""

import sys

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder = sys.argv[1] if len(sys.argv) > 1 else "demo-output"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

texts = ["The train leaves at night.", "Der Zug fährt in der Nacht ab.", "夜里有火车。"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    output = model(**batch, output_hidden_states=True)

print(f"{len(output.hidden_states)} hidden states of shape {tuple(output.last_hidden_state.shape)}")
for text, ids, mask, features in zip(
    texts, batch["input_ids"], batch["attention_mask"], output.last_hidden_state, strict=True
):
    kept = features[mask.bool()]
    shown = ", ".join(f"{value:+.3f}" for value in kept.mean(dim=0)[:6])
    print(f"{text}\n  tokens {ids[mask.bool()].tolist()}\n  mean of the last layer [{shown}, ...]")

masked_lm = AutoModelForMaskedLM.from_pretrained(folder).eval()
question = tokenizer("The train <mask> at night.", return_tensors="pt")
with torch.no_grad():
    logits = masked_lm(**question).logits[question["input_ids"] == tokenizer.mask_token_id]
best = logits.softmax(dim=-1).topk(3)
print("The train <mask> at night.")
for probability, number in zip(best.values[0], best.indices[0], strict=True):
    print(f"  {probability:.3f} {tokenizer.decode(number)}")
