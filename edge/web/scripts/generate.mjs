// Generates src/gen from protos/ with protoc (of grpcio-tools) and protoc-gen-es.
// PYTHON names an interpreter that has grpcio-tools; the Makefile passes that of `make proto`.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("..", import.meta.url));
const root = fileURLToPath(new URL("../../..", import.meta.url));
execFileSync(
  process.env.PYTHON ?? `${root}.venv-proto/bin/python`,
  [
    "-m", "grpc_tools.protoc", "-I", `${root}protos`, `--plugin=protoc-gen-es=${here}node_modules/.bin/protoc-gen-es`,
    `--es_out=${here}src/gen`, "--es_opt=target=ts", `${root}protos/asymcir_protos/v1/retrieval.proto`,
  ],
  { stdio: "inherit" },
);
