"""The mesh, the sharding rules, and one step compiled as jit + mesh or as pmap."""
