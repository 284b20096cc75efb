"""Factorized layers: tensor trains, CP and Tucker in place of linear, convolution and embedding layers."""
