CARGO ?= cargo
target := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: bench bench-plot

# Options are in the environment: see `target/release/bench help`. Only root can use a real CRIU.
bench:
	$(CARGO) build --release --workspace
	CRIU="$${CRIU:-$$([ "$$(id -u)" -ne 0 ] || contrib/get-criu || :)}" $(target)/bench

bench-plot:
	$(CARGO) run --release --package bench -- plot
