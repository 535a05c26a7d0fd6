"""What is here: processors, their instructions, memory, and the ceilings measured on them."""
