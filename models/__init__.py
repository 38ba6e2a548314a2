"""The records that cross a boundary, typed and validated. Nothing here behaves; nothing here imports the project."""
