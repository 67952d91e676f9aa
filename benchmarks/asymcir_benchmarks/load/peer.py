"""How users search by text today: open_clip in torch, float32, one padded text at a time behind a plain gRPC handler.

    python -m asymcir_benchmarks.load.peer --model ViT-L-14 --vectors FILE.npy --port-file FILE

Our own re-creation of that request path, not a peer's code: the handler tokenises the text to the model's full context,
runs the text tower without gradients, and asks an exact FAISS index. A lock keeps it to one query at a time, as a model
on one device is used; waiting callers stand in the server's queue, as gRPC does by default.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import faiss
import grpc
import numpy as np
import open_clip
import torch
from asymcir_common.arguments import MAX_THREADS, ArgumentParser, whole_number
from asymcir_common.files import write_atomically

from asymcir_benchmarks.load.generator import SEARCH

TOP_K = 10


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.load.peer", description=__doc__)
    parser.add_argument("--model", required=True, help="an open_clip architecture; its weights are random")
    parser.add_argument("--vectors", type=Path, required=True, help="float32 [N, E]")
    parser.add_argument("--threads", type=whole_number(1, MAX_THREADS), default=2, help="of torch (default: 2)")
    parser.add_argument("--port-file", type=Path, required=True, help="written once it answers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the process is ended."""
    serve(build_parser().parse_args(argv))
    return 0


def serve(args: argparse.Namespace) -> None:
    """Load, answer, write the port."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = open_clip.create_model(args.model).eval()
    model.visual = torch.nn.Identity()
    tokenize = open_clip.get_tokenizer(args.model)
    vectors = np.load(args.vectors, mmap_mode="r")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    lock = threading.Lock()

    def answer(text: bytes, context: grpc.ServicerContext) -> bytes:
        with lock, torch.inference_mode():
            feature = model.encode_text(tokenize([text.decode()]), normalize=True)
            scores, rows = index.search(feature.numpy(), TOP_K)
        return json.dumps({"ids": [f"p{row}" for row in rows[0]], "scores": scores[0].tolist()}).encode()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
        def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
            return grpc.unary_unary_rpc_method_handler(answer) if details.method == SEARCH else None

    server = grpc.server(futures.ThreadPoolExecutor(64))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    write_atomically(args.port_file, f"{port}\n")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
