//! The figures of docs/performance.md: bars for every case, one figure a measure and setting.

use crate::Error;
use crate::cases;
use crate::markdown;
use crate::options::output_directory;
use crate::report;
use crate::results::{CaseResults, ContenderResults, Median, Results, SettingResults};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// What a figure shows.
struct Measure {
    name: &'static str,
    title: &'static str,
    value: fn(&Median) -> Option<f64>,
}

const MEASURES: &[Measure] = &[
    Measure {
        name: "speed",
        title: "GB/s of wall time (more is better)",
        value: |median| Some(median.gb_per_second),
    },
    Measure {
        name: "cpu",
        title: "CPU seconds per GB in the filters (less is better)",
        value: |median| (!median.peak_rss_bytes.is_empty()).then_some(median.cpu_seconds_per_gb),
    },
];

/// Reads results.json, draws into `docs/figures`, and fills the tables of `docs/performance.md`.
pub(crate) fn run(docs: &Path) -> Result<ExitCode, Error> {
    let path = output_directory().join("results.json");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("{}: {error}; run `make bench` first", path.display()))?;
    let results: Results = serde_json::from_str(&text)?;
    let figures = docs.join("figures");
    fs::create_dir_all(&figures)?;
    for setting in &results.settings {
        for measure in MEASURES {
            let size = report::size(setting.pipe_max_size as u64).replace(' ', "");
            let path = figures.join(format!("{}-{size}.svg", measure.name));
            fs::write(&path, draw(setting, measure))?;
            println!("{}", path.display());
        }
    }
    if let Some(setting) = results.settings.iter().rfind(|it| has_arrival(it)) {
        let path = figures.join("arrival.svg");
        fs::write(&path, arrival(setting))?;
        println!("{}", path.display());
    }
    markdown::fill(&docs.join("performance.md"), &results)?;
    Ok(ExitCode::SUCCESS)
}

/// Pixels.
const WIDTH: usize = 860;
const LEFT: usize = 190;
const RIGHT: usize = 80;
const BAR: usize = 14;
const GAP: usize = 30;
const TOP: usize = 56;

fn draw(setting: &SettingResults, measure: &Measure) -> String {
    let cases = || setting.cases.iter().filter(|case| !report::counts_files(case));
    let largest = cases().flat_map(|case| bars(case, measure)).map(|(_, value)| value);
    let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    let mut y = TOP;
    for case in cases() {
        let bars = bars(case, measure);
        if bars.is_empty() {
            continue;
        }
        text(&mut body, 12, y + 11, "class=\"case\"", &format!("{}: {}", case.name, case.title));
        y += BAR + 6;
        for (contender, value) in bars {
            let length = value / largest * (WIDTH - LEFT - RIGHT) as f64;
            text(&mut body, LEFT - 8, y + 11, "text-anchor=\"end\"", &contender.name);
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>",
                BAR - 2,
                colour(contender)
            );
            let end = LEFT + length as usize + 6;
            let digits = if value < 1.0 { 4 } else { 1 };
            text(&mut body, end, y + 11, "", &format!("{value:.digits$}"));
            y += BAR;
        }
        y += GAP - BAR;
    }
    let title = format!(
        "{}, fs.pipe-max-size = {}",
        measure.title,
        report::size(setting.pipe_max_size as u64)
    );
    let mut head = String::new();
    text(&mut head, 12, 28, "class=\"title\"", &title);
    svg(&title, y, &(head + &body))
}

fn svg(title: &str, height: usize, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{}\">\n\
         <style>text{{font:12px sans-serif;fill:#222}}.case{{font-weight:bold}}\
         .title{{font-size:16px}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n",
        escape(title)
    )
}

/// Whether restores were measured whose image arrives.
pub(crate) fn has_arrival(setting: &SettingResults) -> bool {
    let mut arriving = setting.cases.iter().filter(|case| case.name == "criu-arrival");
    arriving.any(|case| case.contenders.iter().any(|contender| contender.median.is_some()))
}

/// A restore whose image arrives, beside the two that its time is made of: their sum, or the longer
/// of them.
fn arrival(setting: &SettingResults) -> String {
    let mut bars: Vec<(String, f64, &str)> = Vec::new();
    let named = |name: &str| setting.cases.iter().find(|case| case.name == name);
    let alone = named("criu-restore").into_iter().flat_map(|case| &case.contenders).take(1);
    let arriving = named("criu-arrival").into_iter().flat_map(|case| &case.contenders);
    if let Some(round) = arriving.clone().find_map(|contender| contender.rounds.first()) {
        let arrival = round.bytes as f64 / cases::NETWORK as f64;
        bars.push(("the image arrives".into(), arrival, "#b0b0b0"));
    }
    for contender in alone.chain(arriving) {
        if let Some(median) = &contender.median {
            bars.push((contender.name.clone(), median.wall_seconds, colour(contender)));
        }
    }
    let largest = bars.iter().map(|(_, seconds, _)| *seconds).fold(f64::MIN_POSITIVE, f64::max);
    let title = "Seconds until a process is restored whose image arrives at 500 MB/s";
    let mut body = String::new();
    text(&mut body, 12, 28, "class=\"title\"", title);
    let mut y = TOP;
    for (name, seconds, colour) in &bars {
        let length = seconds / largest * (WIDTH - LEFT - RIGHT) as f64;
        text(&mut body, LEFT - 8, y + 11, "text-anchor=\"end\"", name);
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>",
            BAR - 2
        );
        text(&mut body, LEFT + length as usize + 6, y + 11, "", &format!("{seconds:.2}"));
        y += BAR + 6;
    }
    svg(title, y + GAP - BAR, &body)
}

fn bars<'a>(case: &'a CaseResults, measure: &Measure) -> Vec<(&'a ContenderResults, f64)> {
    let value = |it: &'a ContenderResults| Some((it, (measure.value)(it.median.as_ref()?)?));
    case.contenders.iter().filter_map(value).collect()
}

/// References are grey, other streamers blue, ours is orange; all differ in lightness.
fn colour(contender: &ContenderResults) -> &'static str {
    match (contender.is_reference, contender.name.as_str()) {
        (true, _) => "#b0b0b0",
        (false, "criu-image-streamer") => "#2b5f8a",
        (false, _) => "#e07b1a",
    }
}

fn text(svg: &mut String, x: usize, y: usize, attributes: &str, content: &str) {
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {attributes}>{}</text>", escape(content));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
