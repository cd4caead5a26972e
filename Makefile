# GNU make. The directory variables are those of the GNU coding standards.

CARGO ?= cargo
INSTALL ?= install

PREFIX ?= /usr/local
EXEC_PREFIX ?= $(PREFIX)
BINDIR ?= $(EXEC_PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/criu-stream-utils
DESTDIR ?=

filters := criu-sock-capture shard-split shard-merge image-serve image-extract
target := $(or $(CARGO_TARGET_DIR),target)/release
pages := $(wildcard man/*.1 man/*.5 man/*.7)

# What `make install` puts where, by name; `make uninstall` removes the same.
binaries := $(filters) criu-image-streamer
documents := README.md SECURITY.md LICENSE

.PHONY: all bench bench-plot demo check install uninstall clean fuzz check-load

all:
	$(CARGO) build --release --locked

demo: all
	@PATH="$(abspath $(target)):$$PATH" contrib/demo

check:
	@contrib/check

# A minute for each target; SECONDS_EACH or RUNS say otherwise.
fuzz:
	@fuzz/run

# What takes minutes: 100,000 files, 64 GiB, 200 dumps and restores with a real CRIU (as root).
check-load:
	$(CARGO) build --release --workspace --locked
	$(CARGO) test --release --locked -p tests --test load -- --ignored --nocapture --test-threads 1
	CRIU="$$(contrib/get-criu)" $(CARGO) test --release --locked -p tests --test real-criu -- --ignored --nocapture

# Options are in the environment: see `bench help`. Only root can use a real CRIU.
bench:
	$(CARGO) build --release --locked --workspace
	CRIU="$${CRIU:-$$([ "$$(id -u)" -ne 0 ] || contrib/get-criu || :)}" $(target)/bench

bench-plot:
	$(CARGO) run --release --locked --package bench -- plot

# Doesn't build: `make` as yourself, then `make install` as root.
install:
	$(INSTALL) -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(DOCDIR)"
	$(INSTALL) -m 755 $(filters:%=$(target)/%) contrib/criu-image-streamer "$(DESTDIR)$(BINDIR)"
	$(INSTALL) -m 644 $(documents) "$(DESTDIR)$(DOCDIR)"
	@set -e; for page in $(pages); do \
	    section="$(DESTDIR)$(MANDIR)/man$${page##*.}"; \
	    $(INSTALL) -d "$$section"; \
	    $(INSTALL) -m 644 "$$page" "$$section"; \
	done

uninstall:
	rm -f $(binaries:%="$(DESTDIR)$(BINDIR)/%") $(documents:%="$(DESTDIR)$(DOCDIR)/%")
	rm -f $(foreach page,$(notdir $(pages)),"$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page)")
	[ ! -d "$(DESTDIR)$(DOCDIR)" ] || rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(DOCDIR)"

# Also what contrib/get-criu has fetched, under target/.
clean:
	$(CARGO) clean
