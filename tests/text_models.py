"""Models of a few lines that take token ids: a class of a text, of each token, or the next token."""

import torch
from torch import nn


class TextClassifier(nn.Module):
    """The mean over the tokens of a text of what a small network says of each."""

    def __init__(self, num_classes, vocabulary=300, width=32):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, num_classes)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        states = torch.relu(self.hidden(self.table(input_ids)))
        mask = attention_mask[:, :, None]
        return self.out((states * mask).sum(1) / mask.sum(1))


class Tagger(nn.Module):
    """A token by itself and its neighbours."""

    def __init__(self, num_classes, vocabulary=300, width=32):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.hidden, self.out = nn.Linear(3 * width, width), nn.Linear(width, num_classes)

    def forward(self, input_ids, attention_mask):
        states = self.table(input_ids) * attention_mask[:, :, None]
        near = torch.cat([states.roll(1, 1), states, states.roll(-1, 1)], 2)
        return self.out(torch.relu(self.hidden(near)))


class NextToken(nn.Module):
    """The next token by the last two."""

    def __init__(self, num_classes, width=32):
        super().__init__()
        self.table = nn.Embedding(num_classes, width)
        self.hidden, self.out = nn.Linear(2 * width, width), nn.Linear(width, num_classes)

    def forward(self, input_ids):
        states = self.table(input_ids)
        before = torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
        return {"logits": self.out(torch.relu(self.hidden(torch.cat([before, states], 2))))}
