"""The functions and classes that `import compresskd` offers to notebooks and programs.

They drive the objects that the stages of a run are made of, on data and models that are in memory already, and read
what runs have left on disk. `compresskd` itself loads each of them when it is first asked for.
"""
