"""The IMF model: fusion, relation models, decision fusion, losses."""
