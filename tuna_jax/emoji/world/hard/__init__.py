"""The hard emoji world: up to five objects with sizes and colours, relations, and captions that leave things open."""
