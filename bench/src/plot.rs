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
    for setting in results.settings.iter().filter(|setting| !setting.halt_poll) {
        for measure in MEASURES {
            let path = figures.join(format!("{}-{}.svg", measure.name, file_name(setting)));
            fs::write(&path, draw(setting, measure))?;
            println!("{}", path.display());
        }
    }
    for setting in results.settings.iter().filter(|setting| has_arrival(setting)) {
        let path = figures.join(format!("arrival-{}.svg", file_name(setting)));
        fs::write(&path, arrival(setting))?;
        println!("{}", path.display());
    }
    markdown::fill(&docs.join("performance.md"), &results)?;
    Ok(ExitCode::SUCCESS)
}

/// The setting, as figures' names have it.
fn file_name(setting: &SettingResults) -> String {
    report::size(setting.pipe_max_size as u64).replace(' ', "")
}

/// Pixels.
const WIDTH: usize = 860;
const LEFT: usize = 190;
const RIGHT: usize = 80;
const BAR: usize = 14;
const GAP: usize = 30;
const TOP: usize = 56;

fn draw(setting: &SettingResults, measure: &Measure) -> String {
    let cases = setting.cases.iter().filter(|case| !report::counts_files(case));
    let groups: Vec<_> = cases.map(|case| Group::of(case, measure.value)).collect();
    let title = format!(
        "{}, fs.pipe-max-size = {}",
        measure.title,
        report::size(setting.pipe_max_size as u64)
    );
    figure(&title, &groups)
}

/// Bars below the name of a case.
struct Group {
    title: String,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    value: f64,
    colour: &'static str,
}

impl Group {
    fn of(case: &CaseResults, value: impl Fn(&Median) -> Option<f64>) -> Group {
        let bar = |it: &ContenderResults| {
            let value = value(it.median.as_ref()?)?;
            Some(Bar { name: it.name.clone(), value, colour: colour(it) })
        };
        Group {
            title: format!("{}: {}", case.name, case.title),
            bars: case.contenders.iter().filter_map(bar).collect(),
        }
    }
}

fn figure(title: &str, groups: &[Group]) -> String {
    let largest = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value);
    let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    text(&mut body, 12, 28, "class=\"title\"", title);
    let mut y = TOP;
    for Group { title, bars } in groups.iter().filter(|group| !group.bars.is_empty()) {
        text(&mut body, 12, y + 11, "class=\"case\"", title);
        y += BAR + 6;
        for Bar { name, value, colour } in bars {
            let length = value / largest * (WIDTH - LEFT - RIGHT) as f64;
            text(&mut body, LEFT - 8, y + 11, "text-anchor=\"end\"", name);
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                BAR - 2,
            );
            let end = LEFT + length as usize + 6;
            let digits = if *value < 1.0 { 4 } else { 2 };
            text(&mut body, end, y + 11, "", &format!("{value:.digits$}"));
            y += BAR;
        }
        y += GAP - BAR;
    }
    svg(title, y, &body)
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

/// A restore whose image arrives, beside the two things that it consists of: their sum, or the
/// longer of them.
fn arrival(setting: &SettingResults) -> String {
    let named = |name: &str| setting.cases.iter().find(|case| case.name == name);
    let mut groups = Vec::new();
    for case in [named("criu-restore"), named("criu-arrival")].into_iter().flatten() {
        groups.push(Group::of(case, |median| Some(median.wall_seconds)));
    }
    let arriving = named("criu-arrival").into_iter().flat_map(|case| &case.contenders);
    let round = arriving.into_iter().find_map(|contender| contender.rounds.first());
    if let (Some(round), Some(group)) = (round, groups.last_mut()) {
        let value = round.bytes as f64 / cases::NETWORK as f64;
        let bar = Bar { name: "the image arrives".into(), value, colour: GREY };
        group.bars.insert(0, bar);
    }
    let title = format!(
        "Seconds until a process is restored, fs.pipe-max-size = {}",
        report::size(setting.pipe_max_size as u64)
    );
    figure(&title, &groups)
}

const GREY: &str = "#b0b0b0";

/// References are grey, other streamers blue, ours is orange; all differ in lightness.
fn colour(contender: &ContenderResults) -> &'static str {
    match (contender.is_reference, contender.name.as_str()) {
        (true, _) => GREY,
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
