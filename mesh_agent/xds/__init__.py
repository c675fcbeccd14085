"""Configuration of Envoy sidecars: delta ADS built from the local registration, the catalog, the intentions and the CA.

Nothing here imports grpc or Envoy's protocol buffers before the first proxy asks: an agent without sidecars stays small.
"""
