"""One module for each (dtype, instruction set), such as f32_x86_64_v3; see README.md in this folder."""
