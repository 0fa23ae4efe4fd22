"""Model cards: escapes names in Markdown, and checks what the Hub would refuse in a card."""
