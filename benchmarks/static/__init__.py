"""What can be known of the kernels without a GPU: compiled ahead of time, disassembled, counted."""
