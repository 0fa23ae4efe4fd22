#!/usr/bin/env bash
# Rebuild the demo model and every fixture with real fairseq: build.sh OUT [NAME...]
#
# OUT/demo and OUT/fixtures/NAME are what belongs into hf_xlmr/demo and tests/fixtures; OUT/work may be thrown away.
# With names, only those are built, and what they are made from. What exists already is not made again.
# Three environments are needed, each a folder with bin/python:
#   FAIRSEQ_0122  fairseq 0.12.2, torch 1.12.1, Python 3.8 (omegaconf 2.0.6, hydra-core 1.0.7, importlib-resources 5,
#                 sentencepiece, fairscale 0.4.6; for other_tokenizers also fastBPE, subword-nmt and tokenizers 0.15)
#   FAIRSEQ_0102  fairseq 0.10.2, torch 1.7.1, Python 3.8 (sentencepiece)
#   FAIRSEQ_090   fairseq 0.9.0, torch 1.4.0, Python 3.7 (sentencepiece)
# Seeds are fixed; another machine still rounds differently, so weights and answers agree in shape and kind, not in every bit.
set -euo pipefail

out=$(realpath -m "${1:?OUT}")
shift
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
corpus=$recipes/corpus.txt
nli=$recipes/nli.tsv
declare -A environment=(
  [0.12.2]=${FAIRSEQ_0122:?folder of the fairseq 0.12.2 environment}
  [0.10.2]=${FAIRSEQ_0102:?folder of the fairseq 0.10.2 environment}
  [0.9.0]=${FAIRSEQ_090:?folder of the fairseq 0.9.0 environment}
)
all=(demo v0122 v0122cls v0122prenorm v0122prelayernorm v0102 v090 v090half v0122untied v0122bpe v0122rare v0122regression
  v0122ranking v0122twoheads omegaconf fsdp v0122camembert v0122camembertbpe v0122data2vec other_tokenizers
  xmod xmod_prenorm xmod_half xmod_cls xmod_layouts)

export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES='' PYTHONDONTWRITEBYTECODE=1
mkdir -p "$out/work" "$out/fixtures"
cd "$out/work" # from here on paths are relative, because fairseq keeps them in its checkpoints

small=(--languages 'en,fr,ru,ar,hi,zh' --groups 8) # what the tiny models see of the corpus
network=(--encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 4 --max-positions 64)
training=(--cpu --seed 7 --num-workers 0 --optimizer adam --lr-scheduler polynomial_decay --no-progress-bar --log-format none
  --disable-validation --no-epoch-checkpoints)
masked=(--task masked_lm --criterion masked_lm --sample-break-mode eos)
finetuning=(--reset-optimizer --reset-dataloader --reset-meters --arch roberta_base --init-token 0 --separator-token 2
  --shorten-method truncate --batch-size 12 --lr 0.002 --warmup-updates 4 --total-num-update 60 --max-update 40
  --no-save-optimizer-state --find-unused-parameters)

# run VERSION PROGRAM ARGUMENT...: a fairseq program or a script beside this one; what it says is kept only if it fails
run() {
  local bin=${environment[$1]}/bin program=$2 log
  [[ $program == fairseq-* ]] && program=$bin/$program || program=$recipes/$program
  log=$(mktemp log.XXXXXX)
  "$bin/python" "$program" "${@:3}" >"$log" 2>&1 || { tail -n 40 "$log" >&2; return 1; }
  rm "$log"
}

# vocabulary NAME OPTION...: spm/NAME/sentencepiece.bpe.model and spm/NAME/ordered.txt, the dictionary in its order
vocabulary() {
  [[ -e spm/$1 ]] || run 0.12.2 train_sentencepiece.py "spm/$1" --corpus "$corpus" "${@:2}"
}

# texts KIND SPM SOURCE OPTION...: text/SPM.KIND/{train,valid}.COLUMN in the pieces of spm/SPM
texts() {
  [[ -e text/$2.$1 ]] || run 0.12.2 encode_text.py "$1" "text/$2.$1" --sentencepiece "spm/$2/sentencepiece.bpe.model" \
    --source "$3" "${@:4}"
}

# binarise VERSION PREFIX COLUMN FOLDER OPTION...
binarise() {
  run "$1" fairseq-preprocess --only-source --trainpref "$2/train.$3" --validpref "$2/valid.$3" --destdir "$4" --workers 1 "${@:5}"
}

# corpus_data VERSION SPM NAME OPTION...: the small corpus in bin/NAME
corpus_data() {
  [[ ! -e bin/$3 ]] || return 0
  texts plain "$2" "$corpus" "${small[@]}"
  binarise "$1" "text/$2.plain" text "bin/$3" "${@:4}"
}

# classes_data KIND SPM DICTIONARY NAME: bin/NAME/{input0,input1,...,label}, as fairseq's recipe for GLUE lays them out
classes_data() {
  local prefix=text/$2.$1 column
  [[ ! -e bin/$4 ]] || return 0
  texts "$1" "$2" "$nli"
  for column in "$prefix"/train.input*; do
    column=${column##*.}
    binarise 0.12.2 "$prefix" "$column" "bin/$4/$column" --srcdict "$3"
  done
  if [[ $1 == nli ]]; then
    binarise 0.12.2 "$prefix" label "bin/$4/label"
  else
    mkdir "bin/$4/label"
    cp "$prefix"/{train,valid}.label "bin/$4/label"
  fi
}

# pretrain VERSION DATA NAME OPTION...: a tiny masked language model of bin/DATA in runs/NAME
pretrain() {
  [[ -e runs/$3 ]] || run "$1" fairseq-train "bin/$2" --save-dir "runs/$3" --arch roberta_base "${masked[@]}" "${training[@]}" \
    "${network[@]}" --tokens-per-sample 64 --batch-size 12 --lr 0.01 --warmup-updates 4 --total-num-update 80 --max-update 60 "${@:4}"
}

# finetune PARENT NAME OPTION...: bin/NAME from runs/PARENT in runs/NAME
finetune() {
  [[ -e runs/$2 ]] || run 0.12.2 fairseq-train "bin/$2" --save-dir "runs/$2" --restore-file "runs/$1/checkpoint_last.pt" \
    "${network[@]}" "${training[@]}" "${finetuning[@]}" "${@:3}"
}

# assemble NAME SPM DATA [CHECKPOINT]: the folder of a fixture, without its golden answers; for classes also what bin/DATA has
assemble() {
  local folder=$out/fixtures/$1 inside
  mkdir -p "$folder"
  cp "spm/$2/sentencepiece.bpe.model" "$folder"
  cp "${4:-runs/$1/checkpoint_last.pt}" "$folder/model.pt"
  for inside in input0 label; do
    [[ ! -e bin/$3/$inside/dict.txt ]] || install -D -m 644 "bin/$3/$inside/dict.txt" "$folder/$inside/dict.txt"
  done
  cp "bin/$3/dict.txt" "$folder" 2>/dev/null || cp "bin/$3/input0/dict.txt" "$folder"
}

# golden VERSION NAME OPTION...: fairseq's answers beside the files they are about; the last text as long as the model bears
golden() { run "$1" golden.py "$out/fixtures/$2" "${@:3}"; }

# short_golden VERSION NAME OPTION...: the same with a shorter last text, to keep the files small
short_golden() { golden "$@" --longest 20; }

small_nmt() { vocabulary small.nmt "${small[@]}" --pieces 216 --normalization nmt_nfkc; }
small_identity() { vocabulary small "${small[@]}" --pieces 216; }
small_bpe() { vocabulary small.bpe "${small[@]}" --pieces 216 --kind bpe; }

# Rare characters are unknown to this one. SentencePiece still hands them on as they stand, so a dictionary counted by
# fairseq-preprocess holds some of them, and fairseq finds them there.
small_rare() { vocabulary small.rare "${small[@]}" --pieces 208 --coverage 0.98; }

# masked_model NAME SPM OPTION...: written by fairseq 0.12.2, dictionary in frequency order
masked_model() {
  corpus_data 0.12.2 "$2" "$2.counted"
  pretrain 0.12.2 "$2.counted" "$1" --no-save-optimizer-state "${@:3}"
  assemble "$1" "$2" "$2.counted"
}

# ordered_model NAME OPTION...: written by fairseq 0.12.2, dictionary in SentencePiece order
ordered_model() {
  small_identity
  corpus_data 0.12.2 small small.ordered --srcdict spm/small/ordered.txt
  pretrain 0.12.2 small.ordered "$1" --no-save-optimizer-state "${@:2}"
  assemble "$1" small small.ordered
  short_golden 0.12.2 "$1"
}

build_demo() {
  vocabulary demo --pieces 2400 --normalization nmt_nfkc
  texts mixed demo "$corpus"
  [[ -e bin/demo ]] || binarise 0.12.2 text/demo.mixed text bin/demo --srcdict spm/demo/ordered.txt
  [[ -e runs/demo ]] || run 0.12.2 fairseq-train bin/demo --save-dir runs/demo --arch roberta_base "${masked[@]}" "${training[@]}" \
    --encoder-layers 4 --encoder-embed-dim 64 --encoder-ffn-embed-dim 256 --encoder-attention-heads 4 --max-positions 512 \
    --tokens-per-sample 512 --max-tokens 1536 --lr 0.003 --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --warmup-updates 200 \
    --total-num-update 4000 --max-update 4000 --no-save-optimizer-state
  mkdir -p "$out/demo"
  cp runs/demo/checkpoint_last.pt "$out/demo/model.pt"
  cp bin/demo/dict.txt spm/demo/sentencepiece.bpe.model "$out/demo"
  run 0.12.2 golden.py "$out/demo" --output "$out/fixtures/demo" --texts 3 --longest 5
}

build_v0122() {
  small_nmt
  masked_model v0122 small.nmt
  golden 0.12.2 v0122
}

build_v0122bpe() {
  small_bpe
  masked_model v0122bpe small.bpe
  short_golden 0.12.2 v0122bpe
}

build_v0122rare() {
  small_rare
  masked_model v0122rare small.rare
  short_golden 0.12.2 v0122rare --texts 4
}

# camembert_model NAME SPM: a dictionary with specials of its own, as CamemBERT's, from lines on standard input
# (fairseq-preprocess saves it without the flags that fairseq then needs to read it, so the file itself is put back)
camembert_model() {
  if [[ ! -e bin/$1 ]]; then
    { printf '%s 999 #fairseq:overwrite\n' '<unk>' '<s>' '</s>'; cat; } >"$1.txt"
    corpus_data 0.12.2 "$2" "$1" --srcdict "$1.txt"
    cp "$1.txt" "bin/$1/dict.txt"
  fi
  pretrain 0.12.2 "$1" "$1" --no-save-optimizer-state --seed 9
  assemble "$1" "$2" "$1"
}

build_v0122camembert() {
  small_identity
  camembert_model v0122camembert small <spm/small/ordered.txt
  short_golden 0.12.2 v0122camembert
}

build_v0122camembertbpe() { # <mask> has a line of its own, and the pieces are in the order of their frequency
  small_bpe
  corpus_data 0.12.2 small.bpe small.bpe.counted
  { echo '<mask> 1'; cat bin/small.bpe.counted/dict.txt; } | camembert_model v0122camembertbpe small.bpe
  short_golden 0.12.2 v0122camembertbpe --texts 6
}

build_v0122data2vec() { # the text model of fairseq's examples; a link keeps the path of this machine out of the checkpoint
  small_identity
  corpus_data 0.12.2 small small.counted
  ln -sfn "$("${environment[0.12.2]}/bin/python" -c 'import fairseq; print(fairseq.__path__[0])' 2>/dev/null)/examples/data2vec" data2vec
  [[ -e runs/v0122data2vec ]] || run 0.12.2 fairseq-hydra-train --config-dir data2vec/config/text/pretraining --config-name base \
    hydra.run.dir=. common.user_dir=data2vec common.fp16=false common.cpu=true common.tensorboard_logdir=null common.log_format=none \
    common.seed=3 checkpoint.save_dir=runs/v0122data2vec checkpoint.no_save_optimizer_state=true \
    distributed_training.distributed_world_size=1 dataset.max_tokens=1000 dataset.disable_validation=true dataset.num_workers=0 \
    task.data=bin/small.counted task.tokens_per_sample=64 task.sample_break_mode=eos task.mask_multiple_length=1 \
    lr_scheduler.warmup_updates=4 'optimization.lr=[0.01]' optimization.max_update=60 \
    model.average_top_k_layers=2 model.ema_anneal_end_step=30 model.transformer.max_source_positions=64 \
    model.transformer.encoder.{layers=2,embed_dim=16,ffn_embed_dim=32,attention_heads=4}
  assemble v0122data2vec small small.counted
  run 0.12.2 ask_data2vec.py "$PWD/data2vec" "$out/fixtures/v0122data2vec"
}

build_other_tokenizers() { run 0.12.2 other_tokenizers.py "$out/fixtures/other_tokenizers" --corpus "$corpus"; }

build_v0122untied() {
  small_identity
  masked_model v0122untied small --untie-weights-roberta
  short_golden 0.12.2 v0122untied
}

build_v0122prenorm() { ordered_model v0122prenorm --arch roberta_prenorm --encoder-attention-heads 2; }
build_v0122prelayernorm() { ordered_model v0122prelayernorm --encoder-normalize-before; }

build_v0102() {
  small_rare
  corpus_data 0.10.2 small.rare v0102 --thresholdsrc 2
  pretrain 0.10.2 v0102 v0102 --no-save-optimizer-state
  assemble v0102 small.rare v0102
  golden 0.10.2 v0102
}

train_v090() {
  small_nmt
  corpus_data 0.9.0 small.nmt v090 --srcdict spm/small.nmt/ordered.txt
  pretrain 0.9.0 v090 v090
}

build_v090() {
  train_v090
  assemble v090 small.nmt v090
  short_golden 0.9.0 v090
}

build_v090half() {
  train_v090
  run 0.9.0 variants.py half runs/v090/checkpoint_last.pt runs/v090half.pt
  assemble v090half small.nmt v090 runs/v090half.pt
  short_golden 0.9.0 v090half --texts 4
}

build_v0122cls() {
  build_v0122
  classes_data nli small.nmt bin/small.nmt.counted/dict.txt v0122cls
  finetune v0122 v0122cls --task sentence_prediction --criterion sentence_prediction --num-classes 3 --classification-head-name xnli_head
  assemble v0122cls small.nmt v0122cls
  short_golden 0.12.2 v0122cls
}

# parent: a masked language model with the identity vocabulary, from which the fixtures below are made
parent() {
  small_identity
  corpus_data 0.12.2 small small.counted
  pretrain 0.12.2 small.counted parent --no-save-optimizer-state --seed 8
}

build_v0122regression() {
  parent
  classes_data regression small bin/small.counted/dict.txt v0122regression
  finetune parent v0122regression --task sentence_prediction --criterion sentence_prediction --num-classes 1 --regression-target
  assemble v0122regression small v0122regression
  short_golden 0.12.2 v0122regression
}

build_v0122ranking() {
  parent
  classes_data ranking small bin/small.counted/dict.txt v0122ranking
  finetune parent v0122ranking --task sentence_ranking --criterion sentence_ranking --num-classes 3
  assemble v0122ranking small v0122ranking
  short_golden 0.12.2 v0122ranking
}

# made_from_parent KIND NAME OPTION...: the parent's files, its checkpoint rewritten by variants.py
made_from_parent() {
  parent
  run 0.12.2 variants.py "$1" runs/parent/checkpoint_last.pt "runs/$1.pt"
  assemble "$2" small small.counted "runs/$1.pt"
  short_golden 0.12.2 "$2" "${@:3}"
}

build_v0122twoheads() { made_from_parent twoheads v0122twoheads; }
build_omegaconf() { made_from_parent omegaconf omegaconf --texts 4; }

build_fsdp() { # the answers first: beside shards fairseq would no longer open model.pt
  parent
  assemble fsdp small small.counted runs/parent/checkpoint_last.pt
  short_golden 0.12.2 fsdp --texts 4
  run 0.12.2 shards.py runs/parent/checkpoint_last.pt "$out/fixtures/fsdp" --ranks 2
  rm "$out/fixtures/fsdp/model.pt" # the shards hold the same weights
}

# xmod_model NAME ARCH OPTION...: a tiny X-MOD in runs/NAME.pt, all of whose adapters differ
xmod_model() {
  small_identity
  corpus_data 0.12.2 small small.counted
  pretrain 0.12.2 small.counted "$1" --no-save-optimizer-state --find-unused-parameters --arch "$2" "${@:3}"
  [[ -e runs/$1.pt ]] || run 0.12.2 variants.py adapters "runs/$1/checkpoint_last.pt" "runs/$1.pt"
}

# xmod_fixture FOLDER CHECKPOINT DATA LANGUAGES
xmod_fixture() {
  assemble "xmod/$1" small "$3" "$2"
  run 0.12.2 xmod_golden.py "$out/fixtures/xmod/$1" --languages "$4"
}

build_xmod() {
  xmod_model xmod xmod_base_13
  xmod_fixture base runs/xmod.pt small.counted en_XX,sw_KE,vi_VN
}

build_xmod_prenorm() {
  xmod_model xmod_prenorm xmod_large_prenorm
  xmod_fixture prenorm runs/xmod_prenorm.pt small.counted en_XX,hi_IN,sa_IN
}

build_xmod_half() {
  xmod_model xmod xmod_base_13
  run 0.12.2 variants.py half runs/xmod.pt runs/xmod_half.pt
  xmod_fixture half runs/xmod_half.pt small.counted vi_VN
}

build_xmod_cls() {
  xmod_model xmod xmod_base_13
  classes_data nli small bin/small.counted/dict.txt xmod_cls
  [[ -e runs/xmod_cls ]] || run 0.12.2 fairseq-train bin/xmod_cls --save-dir runs/xmod_cls --restore-file "$PWD/runs/xmod.pt" \
    "${network[@]}" "${training[@]}" "${finetuning[@]}" --arch xmod_base_13 --task sentence_prediction_adapters \
    --criterion sentence_prediction_adapters --num-classes 3 --classification-head-name xnli_head
  xmod_fixture cls runs/xmod_cls/checkpoint_last.pt xmod_cls en_XX,fr_XX
}

build_xmod_layouts() { run 0.12.2 xmod_layouts.py "$out/fixtures/xmod/layouts"; }

for name in "${@:-${all[@]}}"; do
  echo "$name"
  "build_$name"
done
