"""The routing stage: every audit event in, exactly one decision about it out. `README.md` beside this has the map."""
