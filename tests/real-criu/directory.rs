//! Without any filter: CRIU, the victim and the harness do what the other
//! tests rely on.

use crate::bench::Bench;
use crate::criu::Image;
use crate::victim::Victim;

#[test]
fn a_tree_goes_on_after_a_dump_to_a_directory() {
    let name = "a_tree_goes_on_after_a_dump_to_a_directory";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let images = bench.directory("images");
    bench.criu.dump(Image::Files, &images, victim.pid(), &[]).must_succeed();
    let dumped = victim.reap();
    bench.criu.restore(Image::Files, &images, &[]).must_succeed();
    victim.must_go_on(&dumped);
}
