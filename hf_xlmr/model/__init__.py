"""What a model folder is: shapes, safetensors files, configuration, and the records of its making."""
