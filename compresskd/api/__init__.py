"""The functions and classes that `import compresskd` offers to notebooks and programs.

They drive the objects that the stages of a run are made of, on data and models that are in memory already.
`compresskd` itself loads each of them when it is first asked for; nothing here is imported before.

Several epochs of training, a compression and a comparison in ten lines:

>>> import torch, compresskd
>>> x, y = torch.randn(400, 16), torch.arange(400) % 4
>>> x[:, :4] += 4 * torch.eye(4)[y]  # four classes that can be told apart
>>> train, validation = (x[:320], y[:320]), (x[320:], y[320:])
>>> teacher = compresskd.train(torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(),
...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)), train, validation, epochs=3)
>>> small = compresskd.compress(teacher, x[:32], rank=4, exclude=["4"])
>>> small = compresskd.distill(small, teacher, train, validation, epochs=3)
>>> table = compresskd.compare_compression_strategies(teacher, train, validation, rank=4, epochs=2,
...     strategies=["train", "compress", "distill_to_compressed"])

The table is a pandas DataFrame where pandas is installed, else a list of rows:

>>> compresskd.api.tables.rows_of(table)[1]["strategy"]
'train'
"""
