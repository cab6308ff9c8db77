"""The second task: micro-video recommendation with MetaMMF."""
