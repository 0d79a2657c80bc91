"""What hosted models cost and when their caches hit: rules as data, and simulators of them."""
