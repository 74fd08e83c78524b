"""What bench_step.py and bench_bits.py share: networks, contestants, clocks."""
