"""What a gallery holds, as one HTML page: counts, recall and time of its index, UNION's gates, a map, duplicates."""

from asymcir_server.gallery.overview.gates import GateCounter
from asymcir_server.gallery.overview.page import render_page
from asymcir_server.gallery.overview.summary import Summary, summarise

__all__ = ["GateCounter", "Summary", "render_page", "summarise"]
