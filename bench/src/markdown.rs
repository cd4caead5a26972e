//! The tables of docs/performance.md.

use crate::Error;
use crate::plot;
use crate::report;
use crate::results::{CaseResults, Results, SettingResults};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Replaces what stands between `<!-- bench:NAME -->` and `<!-- /bench -->`: NAME is `machine`, or
/// a setting such as `1 MiB`. Settings that were not measured keep their table.
pub(crate) fn fill(path: &Path, results: &Results) -> Result<(), Error> {
    let mut page = fs::read_to_string(path)?;
    replace(&mut page, "machine", &machine(results));
    for setting in &results.settings {
        let name = match setting.halt_poll {
            true => "halt-poll".into(),
            false => report::size(setting.pipe_max_size as u64),
        };
        replace(&mut page, &name, &tables(setting));
    }
    if results.settings.iter().any(plot::has_arrival) {
        replace(&mut page, "arrival", &arrivals(results));
    }
    fs::write(path, page)?;
    println!("{}", path.display());
    Ok(())
}

fn replace(page: &mut String, name: &str, content: &str) {
    let mark = format!("<!-- bench:{name} -->\n");
    let Some(start) = page.find(&mark).map(|at| at + mark.len()) else {
        return;
    };
    if let Some(length) = page[start..].find("<!-- /bench -->") {
        page.replace_range(start..start + length, content);
    }
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "Linux {}, {} × {}, {} MiB of memory, transparent huge pages `{}`, CAP_SYS_RESOURCE: {}; \
         a thread that waits for a byte on another processor is woken up in {:.1} µs{}; commit {}; {} MiB of memory dumped, medians of {} rounds.\n",
        machine.kernel,
        machine.cores,
        machine.processor,
        machine.memory_bytes >> 20,
        machine.transparent_hugepages,
        if machine.may_exceed_pipe_max_size { "yes" } else { "no" },
        machine.wake_up_micros,
        machine.halt_poll_ns.map_or_else(String::new, |ns| format!(" (guest_halt_poll_ns = {ns})")),
        machine.commit,
        results.megabytes,
        results.rounds,
    )
}

fn tables(setting: &SettingResults) -> String {
    let mut text = String::from(
        "| case | contender | GB/s | of the first | CPU s/GB | context switches | peak RSS |\n\
         |---|---|--:|--:|--:|--:|---|\n",
    );
    let in_gb = |case: &&CaseResults| !report::counts_files(case);
    setting.cases.iter().filter(in_gb).for_each(|case| rows(&mut text, case));
    text.push_str(
        "\n| case | contender | files/s | of the first | CPU s | context switches | peak RSS |\n\
         |---|---|--:|--:|--:|--:|---|\n",
    );
    let files = setting.cases.iter().filter(|case| report::counts_files(case));
    files.for_each(|case| rows(&mut text, case));
    text
}

/// What else is known of restores whose image arrives.
fn arrivals(results: &Results) -> String {
    let mut text = String::from(
        "| pipes | case | contender | restored | after the last byte | unread at most |\n\
         |---|---|---|--:|--:|--:|\n",
    );
    for setting in &results.settings {
        for case in &setting.cases {
            let medians = case.contenders.iter().filter_map(|it| Some((it, it.median.as_ref()?)));
            for (contender, median) in medians {
                let Some(arrived) = &median.arrived else { continue };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {:.2} s | {:.2} s | {:.0} MiB |",
                    report::size(setting.pipe_max_size as u64),
                    case.name,
                    contender.name.replace('|', "\\|"),
                    median.wall_seconds,
                    arrived.seconds_after,
                    arrived.unread_bytes as f64 / (1 << 20) as f64,
                );
            }
        }
    }
    text
}

fn rows(text: &mut String, case: &CaseResults) {
    if let Some(reason) = &case.skipped {
        let _ = writeln!(text, "| {} | skipped: {reason} | | | | | |", case.name);
    }
    for contender in &case.contenders {
        let name = contender.name.replace('|', "\\|");
        let Some(median) = &contender.median else {
            let _ = writeln!(text, "| {} | {name} | failed | | | | |", case.name);
            continue;
        };
        let switches = match median.peak_rss_bytes.is_empty() {
            true => "-".into(),
            false => format!("{:.0}", median.context_switches),
        };
        let _ = writeln!(
            text,
            "| {} | {name} | {} | {} | {} | {switches} | {} |",
            case.name,
            report::speed_text(case, median),
            report::share_text(case, median),
            report::cpu_text(case, median),
            report::peaks_text(median),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_table_is_replaced() {
        let mut page = "a\n<!-- bench:x -->\nold\n<!-- /bench -->\n<!-- bench:y -->\nkept\n\
                        <!-- /bench -->\n"
            .to_owned();
        replace(&mut page, "x", "new\n");
        replace(&mut page, "z", "new\n");
        assert_eq!(page.matches("new").count(), 1);
        assert!(page.contains("<!-- bench:x -->\nnew\n<!-- /bench -->\n<!-- bench:y -->\nkept"));
    }
}
