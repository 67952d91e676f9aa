"""The embedded default: emoji pictures, small bundles made from them, and a run of the whole product over both."""
