"""The device bundle: its query encoder, its golden pictures and its self-test."""

from asymcir_edge.device.bundle import DeviceBundle
from asymcir_edge.device.encoder import QueryEncoder, open_session
from asymcir_edge.device.golden import Agreement, compare_tokens, computes_in_float, token_cosines
from asymcir_edge.device.selftest import run_selftest
from asymcir_edge.device.verdicts import EncoderReport, SelfTestReport

__all__ = [
    "Agreement",
    "DeviceBundle",
    "EncoderReport",
    "QueryEncoder",
    "SelfTestReport",
    "compare_tokens",
    "computes_in_float",
    "open_session",
    "run_selftest",
    "token_cosines",
]
