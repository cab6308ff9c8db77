"""Machines: resources, joining a cluster, checking its nodes."""
