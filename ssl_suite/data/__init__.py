"""Reading: sources, splits, samplers, decoding. Used by ``datamodules``, never the reverse."""
