"""What has nothing to do with LoRA: errors, flags, files, rows. Nobody must read it to learn."""
