"""Distillation losses: small named terms over what the student and the teacher say of a batch."""
