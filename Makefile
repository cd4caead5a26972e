# GNU make. The directory variables are those of the GNU coding standards.

CARGO ?= cargo
INSTALL ?= install

PREFIX ?= /usr/local
EXEC_PREFIX ?= $(PREFIX)
BINDIR ?= $(EXEC_PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/criu-stream-utils
BASHCOMPDIR ?= $(DATADIR)/bash-completion/completions
ZSHCOMPDIR ?= $(DATADIR)/zsh/site-functions
FISHCOMPDIR ?= $(DATADIR)/fish/vendor_completions.d
DESTDIR ?=

# What is built goes to $(CARGO_TARGET_DIR), or target/, and nowhere else: the
# source tree may be read-only.
filters := \
    criu-sock-capture \
    shard-split \
    shard-merge \
    image-serve \
    image-extract \
    criu-page-capture \
    image-combine \
    criu-checkpoint \
    criu-restore \
    criu-migrate \
    criu-run \
    criu-image-streamer
built := $(or $(CARGO_TARGET_DIR),target)
target := $(built)/release
completions := $(built)/completions

# What `make install` puts where, by name; `make uninstall` removes the same.
pages := $(wildcard man/*.1 man/*.5 man/*.7)
# With their folders, as they refer to each other.
documents := $(wildcard README.md SECURITY.md CHANGELOG.md LICENSE docs/*.md docs/figures/*.svg \
    contrib/eviction-watch contrib/kubernetes/*.yaml contrib/sysctl.d/*.conf contrib/systemd/*.service)
document_directories := docs/figures/ docs/ contrib/kubernetes/ contrib/sysctl.d/ contrib/systemd/ contrib/

.PHONY: all completions bench bench-plot demo check check-quick check-dependencies check-kernels check-load check-packages fault-matrix fuzz install install-strip uninstall dist deb rpm clean

all:
	$(CARGO) build --release --locked $(filters:%=--package %)
	@$(MAKE) --no-print-directory completions

# Of the programs, as they are built.
completions:
	contrib/completions $(completions) $(filters:%=$(target)/%)

demo: all
	@PATH="$(abspath $(target)):$$PATH" contrib/demo

check:
	@contrib/check

# Without a real CRIU and what takes long: under three minutes from a built tree.
check-quick:
	@contrib/check --quick

# The faults, and what each filter does about them, as a table; `make check` checks it.
fault-matrix:
	$(CARGO) build --workspace --locked --quiet
	$(CARGO) test -p tests --test fault-matrix --locked --quiet -- --nocapture --test-threads 1

# Advisories, licences and sources, by deny.toml. Needs cargo-deny, and the network.
check-dependencies:
	$(CARGO) deny --locked check
	$(CARGO) deny --locked --manifest-path fuzz/Cargo.toml --config deny.toml check

# A minute for each target; SECONDS_EACH or RUNS say otherwise.
fuzz:
	@fuzz/run

# What takes minutes: 100,000 files, 64 GiB, 1,000 cases of chaos, 200 dumps and restores with a real
# CRIU (as root).
check-load:
	$(CARGO) build --release --workspace --locked
	$(CARGO) test --release --locked -p tests --test load -- --ignored --nocapture --test-threads 1
	$(CARGO) test --release --locked -p tests --test chaos -- --ignored --nocapture
	CRIU="$$(contrib/get-criu)" $(CARGO) test --release --locked -p tests --test real-criu -- --ignored --nocapture

# What depends on the kernel, on Debian's 5.10, 6.1 and 6.12, booted under qemu.
check-kernels:
	tests/kernels/check

# Options are in the environment: see `bench help`. Only root can use a real CRIU.
bench:
	$(CARGO) build --release --locked --workspace
	CRIU="$${CRIU:-$$([ "$$(id -u)" -ne 0 ] || contrib/get-criu || :)}" $(target)/bench

bench-plot:
	$(CARGO) run --release --locked --package bench -- plot

# Doesn't build: `make` as yourself, then `make install` as root.
install:
	$(INSTALL) -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(BASHCOMPDIR)" \
	    "$(DESTDIR)$(ZSHCOMPDIR)" "$(DESTDIR)$(FISHCOMPDIR)"
	$(INSTALL) -m 755 $(strip) $(filters:%=$(target)/%) "$(DESTDIR)$(BINDIR)"
	@set -e; for file in $(documents); do \
	    $(INSTALL) -d "$(DESTDIR)$(DOCDIR)/$$(dirname "$$file")"; \
	    $(INSTALL) -m 644 "$$file" "$(DESTDIR)$(DOCDIR)/$$file"; \
	done
	$(INSTALL) -m 644 $(filters:%=$(completions)/bash/%) "$(DESTDIR)$(BASHCOMPDIR)"
	$(INSTALL) -m 644 $(filters:%=$(completions)/zsh/_%) "$(DESTDIR)$(ZSHCOMPDIR)"
	$(INSTALL) -m 644 $(filters:%=$(completions)/fish/%.fish) "$(DESTDIR)$(FISHCOMPDIR)"
	@set -e; for page in $(pages); do \
	    section="$(DESTDIR)$(MANDIR)/man$${page##*.}"; \
	    $(INSTALL) -d "$$section"; \
	    $(INSTALL) -m 644 "$$page" "$$section"; \
	    sed -i -e 's|/usr/local/share/doc/criu\\-stream\\-utils|$(DOCDIR)|' "$$section/$${page##*/}"; \
	done

install-strip:
	$(MAKE) install strip=--strip

uninstall:
	rm -f $(filters:%="$(DESTDIR)$(BINDIR)/%") $(foreach file,$(documents),"$(DESTDIR)$(DOCDIR)/$(file)")
	rm -f $(filters:%="$(DESTDIR)$(BASHCOMPDIR)/%") $(filters:%="$(DESTDIR)$(ZSHCOMPDIR)/_%") \
	    $(filters:%="$(DESTDIR)$(FISHCOMPDIR)/%.fish")
	rm -f $(foreach page,$(notdir $(pages)),"$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page)")
	for dir in $(patsubst %/,"$(DESTDIR)$(DOCDIR)/%",$(document_directories)) \
	    "$(DESTDIR)$(DOCDIR)"; do \
	    [ ! -d "$$dir" ] || rmdir --ignore-fail-on-non-empty "$$dir"; \
	done

# The source tarball, with its crates, of the commit that is checked out.
dist:
	@contrib/dist $(built)/dist

# Packages, built in clean roots under $(built)/packages; as root.
deb rpm:
	@contrib/packaging/build $@ $(built)/packages

# Builds them all, and the recipes for Arch and Alpine, and tries what can be tried in further clean roots.
check-packages:
	@contrib/packaging/check $(built)/packages

# Also what contrib/get-criu has fetched, under target/.
clean:
	$(CARGO) clean
