"""Data-free knowledge distillation with a curriculum (CuDFKD) in JAX and Flax."""
