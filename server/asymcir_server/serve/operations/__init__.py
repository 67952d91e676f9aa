"""What whoever runs a server looks at: metrics."""

from asymcir_server.serve.operations.metrics import GalleryState, ServerMetrics

__all__ = ["GalleryState", "ServerMetrics"]
