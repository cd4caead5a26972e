//! The table for people.

use crate::results::{Arrived, CaseResults, ContenderResults, Median, Results};

/// Which machine this is.
pub(crate) fn print_machine(results: &Results) {
    let machine = &results.machine;
    println!(
        "Linux {}, {} × {}, {} MiB of memory, commit {}",
        machine.kernel,
        machine.cores,
        machine.processor,
        machine.memory_bytes >> 20,
        machine.commit,
    );
    println!("{} MiB, {} rounds, medians; GB are 10⁹ bytes", results.megabytes, results.rounds);
    println!(
        "a thread that waits for a byte on another processor is woken up in {:.1} µs",
        machine.wake_up_micros
    );
    if machine.may_exceed_pipe_max_size {
        println!("CAP_SYS_RESOURCE is there: pipes get 4 MiB whatever fs.pipe-max-size says");
    }
}

/// With which setting the following cases run.
pub(crate) fn print_setting(pipe_max_size: usize) {
    println!("\n==== fs.pipe-max-size = {} ====", size(pipe_max_size as u64));
}

/// The same for what is measured once more.
pub(crate) fn print_halt_poll() {
    println!("\n==== idle processors that wait for work as the kernel has them by default ====");
}

/// One case's table.
pub(crate) fn print_case(case: &CaseResults) {
    println!("\n{}: {}", case.name, case.title);
    if let Some(reason) = &case.skipped {
        println!("  skipped: {}: {reason}", case.name);
    }
    if case.contenders.is_empty() {
        return;
    }
    println!(
        "  {:24} {:>8} {:>8} {:>9} {:>10} {:>9}  peak RSS of each",
        "",
        if counts_files(case) { "files/s" } else { "GB/s" },
        "of first",
        if counts_files(case) { "CPU s" } else { "CPU s/GB" },
        "switches",
        "wall s"
    );
    for contender in &case.contenders {
        match (&contender.median, &contender.failed) {
            (_, Some(reason)) => println!("  {:24} failed: {reason}", contender.name),
            (Some(median), None) => {
                println!("  {}", row(case, contender, median));
                median.arrived.iter().for_each(|it| println!("  {:24} {}", "", arrived_text(it)));
            }
            (None, None) => println!("  {:24} not measured", contender.name),
        }
    }
}

/// Those who failed, once more where they are seen. Says whether there are any.
pub(crate) fn print_failures(results: &Results) -> bool {
    let mut any = false;
    for case in results.settings.iter().flat_map(|setting| &setting.cases) {
        for contender in &case.contenders {
            if let Some(reason) = &contender.failed {
                eprintln!("bench: {}: {}: {reason}", case.name, contender.name);
                any = true;
            }
        }
    }
    any
}

/// The case is about the number of files, and not about bytes.
pub(crate) fn counts_files(case: &CaseResults) -> bool {
    let files = case.contenders.iter().flat_map(|it| &it.rounds).map(|round| round.files).max();
    files.is_some_and(|files| files > 10_000)
}

/// What a case is about: files or GB in a second.
pub(crate) fn speed(case: &CaseResults, median: &Median) -> f64 {
    if counts_files(case) { median.files_per_second } else { median.gb_per_second }
}

/// The same as text.
pub(crate) fn speed_text(case: &CaseResults, median: &Median) -> String {
    let digits = if counts_files(case) { 0 } else { 2 };
    format!("{:.digits$}", speed(case, median))
}

/// CPU seconds of the filters, for a GB or for all the files.
pub(crate) fn cpu_text(case: &CaseResults, median: &Median) -> String {
    match (median.peak_rss_bytes.is_empty(), counts_files(case)) {
        (true, _) => "-".into(),
        (false, true) => format!("{:.3}", median.cpu_seconds),
        (false, false) => format!("{:.4}", median.cpu_seconds_per_gb),
    }
}

/// The speed as a part of the first contender's.
pub(crate) fn share_text(case: &CaseResults, median: &Median) -> String {
    match case.contenders.first().and_then(|first| first.median.as_ref()) {
        Some(first) => format!("{:.0} %", 100.0 * speed(case, median) / speed(case, first)),
        None => "-".into(),
    }
}

/// What else there is to say of a restore whose image arrived.
fn arrived_text(arrived: &Arrived) -> String {
    let Arrived { seconds_after, unread_bytes } = arrived;
    let unread = size(*unread_bytes);
    format!("restored {seconds_after:.2} s after the last byte, at most {unread} were unread")
}

/// Each filter's peak.
pub(crate) fn peaks_text(median: &Median) -> String {
    let peaks = median.peak_rss_bytes.iter();
    peaks.map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect::<Vec<_>>().join(", ")
}

/// `1 MiB`, or `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes % (1 << 20) {
        0 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
    }
}

fn row(case: &CaseResults, contender: &ContenderResults, median: &Median) -> String {
    let has_processes = !median.peak_rss_bytes.is_empty();
    let switches = match has_processes {
        true => format!("{:.0}", median.context_switches),
        false => "-".into(),
    };
    format!(
        "{:24} {:>8} {:>8} {:>9} {:>10} {:>9.3}  {}",
        contender.name,
        speed_text(case, median),
        share_text(case, median),
        cpu_text(case, median),
        switches,
        median.wall_seconds,
        peaks_text(median),
    )
}
