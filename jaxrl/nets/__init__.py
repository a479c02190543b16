"""Networks: flax.linen modules without loops over time, without losses, without optimisers."""
