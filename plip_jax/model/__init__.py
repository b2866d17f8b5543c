"""The network: presets, the two towers and CLIP. The only folder that imports flax."""
