"""Model cards: Markdown that stays Markdown whatever a name holds, and what of a card the Hub would refuse."""
