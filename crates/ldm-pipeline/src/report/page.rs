//! The page: everything of a [`Report`] as HTML. What comes from the run passes through [`escape`] or [`script_json`], and the page's own policy
//! lets no other script run and nothing be loaded.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::{
    Report, StageReport,
    curves::{Chart, Line, MAX_POINTS},
    figures,
    html::{base64, date, duration, escape, number, script_json, size},
    journal::Journal,
    progress::{Progress, State, Value},
    sheets::{History, Picture},
};
use crate::{hardware::Hardware, info::grouped, train::Stage};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

pub(super) fn render(report: &Report) -> String {
    fill(PAGE, |name| match name {
        "script_hash" => base64(&Sha256::digest(SCRIPT)),
        "style" => STYLE.into(),
        "script" => SCRIPT.into(),
        "name" => escape(&report.name),
        "path" => escape(&report.path),
        "written" => date(report.written),
        "version" => env!("CARGO_PKG_VERSION").into(),
        "links" => links(report),
        "summary" => summary(report),
        "results" => results(&report.results),
        "stages" => report.stages.iter().map(stage).collect(),
        "log" => log(&report.journal),
        "config" => config(&report.config),
        "hardware" => match &report.hardware {
            Ok(machines) => hardware(machines.as_deref().unwrap_or_default()),
            Err(error) => notice(&error.to_string()),
        },
        "thinning" => thinning(report),
        "data" => script_json(&data(report)),
        name => unreachable!("the page has no place for {name}"),
    })
}

/// `template` with each `{{name}}` replaced, once: what replaces it is not looked at.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut page = String::with_capacity(1 << 20);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("each brace is closed");
        page.push_str(before);
        page.push_str(&value(name));
        rest = after;
    }
    page + rest
}

fn heading(stage: Stage) -> (&'static str, &'static str) {
    match stage {
        Stage::Vae => ("Stage 1", "autoencoder"),
        Stage::Diffusion => ("Stage 2", "diffusion model"),
    }
}

fn links(report: &Report) -> String {
    let mut links = String::from("<a href=\"#summary\">Summary</a>");
    if !report.results.is_empty() {
        links += "<a href=\"#results\">Results</a>";
    }
    for stage in &report.stages {
        let (title, _) = heading(stage.stage);
        let _ = write!(links, "<a href=\"#{}\">{title}</a>", stage.stage.folder());
    }
    links += "<a href=\"#log\">Log</a><a href=\"#config\">Configuration</a><a href=\"#hardware\">Hardware</a>";
    links
}

fn notice(text: &str) -> String {
    format!("<p class=\"notice\">{}</p>\n", escape(text))
}

/// A row of a list of facts; `more` is set small below.
fn fact(list: &mut String, name: &str, value: &str, more: &str) {
    let _ = write!(list, "<dt>{}</dt><dd>{}", escape(name), escape(value));
    if !more.is_empty() {
        let _ = write!(list, "<small>{}</small>", escape(more));
    }
    *list += "</dd>\n";
}

fn summary(report: &Report) -> String {
    let mut html = String::new();
    if let Some(problem) = &report.config_problem {
        html += &notice(&format!("config.toml can't be understood: {problem}"));
    }
    if let Some(problem) = &report.journal.problem {
        html += &notice(&format!("log.jsonl can't be read: {problem}"));
    }
    html += "<div class=\"cards\">\n";
    for stage in &report.stages {
        html += &stage_card(stage);
    }
    html += "<article class=\"card\"><h2>Run</h2>\n<dl>\n";
    let seconds: f64 = (report.stages.iter())
        .map(|stage| stage.progress.seconds)
        .sum();
    fact(&mut html, "Training time", &duration(seconds), "");
    fact(&mut html, "Model", report.model, "");
    let checkpoints = || {
        report
            .stages
            .iter()
            .flat_map(|stage| &stage.progress.checkpoints)
    };
    let kept = match checkpoints().count() {
        0 => "none".into(),
        number => format!(
            "{number}, {}",
            size(checkpoints().map(|(_, bytes)| bytes).sum())
        ),
    };
    fact(&mut html, "Checkpoints", &kept, "");
    fact(
        &mut html,
        "Warnings",
        &match report.journal.warnings {
            0 => "none in the log".into(),
            number => grouped(number),
        },
        "",
    );
    if let Ok(Some(machines)) = &report.hardware
        && let Some(machine) = machines.last()
    {
        let cpu = machine.cpu.as_deref().unwrap_or(&machine.architecture);
        fact(&mut html, "Device", &machine.device, cpu);
    }
    html + "</dl></article>\n</div>\n"
}

fn stage_card(stage: &StageReport) -> String {
    let progress = &stage.progress;
    let (title, subject) = heading(stage.stage);
    let (class, state) = match progress.state {
        State::Waiting => ("waiting", "not started"),
        State::Running => ("running", "running"),
        State::Stopped => ("stopped", "stopped"),
        State::Finished => ("finished", "finished"),
    };
    let mut html = format!(
        "<article class=\"card\"><h2>{title}, {subject} <span class=\"pill {class}\">{state}</span></h2>\n"
    );
    let total = progress.total.map_or("?".into(), grouped);
    let _ = writeln!(
        html,
        "<p class=\"big\">{} <small>of {total} steps</small></p>",
        grouped(progress.done)
    );
    if let Some(total) = progress.total {
        let _ = writeln!(
            html,
            "<progress max=\"{total}\" value=\"{}\" aria-label=\"{title}, steps done\"></progress>",
            progress.done.min(total)
        );
    }
    html += "<dl>\n";
    stage_facts(&mut html, progress);
    html += "</dl>\n";
    if !progress.checkpoints.is_empty() {
        html += "<details><summary>Checkpoints</summary><dl>\n";
        for (name, bytes) in progress.checkpoints.iter().rev() {
            fact(&mut html, name, &size(*bytes), "");
        }
        html += "</dl></details>\n";
    }
    if !progress.last.is_empty() {
        html += "<details><summary>All last values</summary><dl>\n";
        for Value { name, value, step } in &progress.last {
            // Figures of the last step need no step beside them.
            let at = match step {
                step if *step == progress.done => String::new(),
                step => format!("at step {}", grouped(*step)),
            };
            fact(&mut html, name, &number(*value), &at);
        }
        html += "</dl></details>\n";
    }
    html + "</article>\n"
}

fn stage_facts(html: &mut String, progress: &Progress) {
    if progress.state == State::Waiting {
        return;
    }
    let sessions = match progress.sessions {
        0 | 1 => String::new(),
        sessions => format!("in {sessions} sessions"),
    };
    fact(
        html,
        "Training time",
        &duration(progress.seconds),
        &sessions,
    );
    if let Some(seconds) = progress.step_seconds {
        let images = progress
            .images
            .filter(|_| seconds > 0.0)
            .map_or(String::new(), |images| {
                format!("{} images per second", number(images as f64 / seconds))
            });
        fact(html, "Step, recent median", &duration(seconds), &images);
    }
    if let Some(remaining) = progress.remaining() {
        fact(
            html,
            "Time left",
            &format!("about {}", duration(remaining)),
            "",
        );
    }
    if let (State::Running | State::Stopped, Some(silence)) = (progress.state, progress.silence) {
        fact(
            html,
            "Last step",
            &format!("{} ago", duration(silence.as_secs_f64())),
            "",
        );
    }
    for best in &progress.best {
        let name = format!("Best {}", figures::within(&best.name));
        fact(
            html,
            &name,
            &number(best.value),
            &format!("at step {}", grouped(best.step)),
        );
    }
    for name in ["total", "rec", "loss"] {
        if let Some(last) = progress.last.iter().find(|last| last.name == name) {
            fact(
                html,
                &format!("Last {}", figures::within(name)),
                &number(last.value),
                "",
            );
        }
    }
    if progress.damaged > 0 {
        let lines = format!("{} of metrics.jsonl", grouped(progress.damaged));
        fact(html, "Unreadable lines", &lines, "");
    }
}

fn image(picture: &Picture, class: &str, alt: &str) -> String {
    let Picture { width, height, .. } = picture;
    format!(
        "<img class=\"{class}\" src=\"{}\" width=\"{width}\" height=\"{height}\" alt=\"{}\">",
        picture.data_uri(),
        escape(alt)
    )
}

fn results(pictures: &[(&str, Picture)]) -> String {
    if pictures.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<section id=\"results\">\n<h2>Results</h2>\n<div class=\"results\">\n");
    for (title, picture) in pictures {
        let title = escape(title);
        let _ = writeln!(
            html,
            "<figure>{}<figcaption>{title}</figcaption></figure>",
            image(picture, "result", &title)
        );
    }
    html + "</div>\n</section>\n"
}

fn stage(stage: &StageReport) -> String {
    let (title, subject) = heading(stage.stage);
    let id = stage.stage.folder();
    let mut html = format!("<section id=\"{id}\">\n<h2>{title}<small>{subject}</small></h2>\n");
    if stage.charts.is_empty() && stage.history.shown.is_empty() {
        html += "<p class=\"quiet\">Nothing recorded yet.</p>\n";
    }
    html += &sheets(stage.stage, &stage.history);
    let _ = writeln!(
        html,
        "<div id=\"{id}-charts\"></div>\n<noscript><p class=\"quiet\">The curves need JavaScript.</p></noscript>\n</section>"
    );
    html
}

fn sheets(stage: Stage, history: &History) -> String {
    let what = match stage {
        Stage::Vae => "Reconstructions",
        Stage::Diffusion => "Samples",
    };
    if history.total == 0 {
        return String::new();
    }
    let mut html = format!("<h3>{what}</h3>\n");
    let mut remarks = Vec::new();
    let shown = history.shown.len();
    if shown + history.damaged < history.total {
        remarks.push(format!(
            "{shown} of {} sheets, spread evenly, to keep the page small; all are in {}/samples.",
            history.total,
            stage.folder()
        ));
    } else if history.reduced {
        remarks.push(format!(
            "Stored as JPEG to keep the page small; the originals are in {}/samples.",
            stage.folder()
        ));
    }
    if history.damaged > 0 {
        remarks.push(format!("{} sheets could not be read.", history.damaged));
    }
    if !remarks.is_empty() {
        let _ = writeln!(html, "<p class=\"quiet\">{}</p>", remarks.join(" "));
    }
    if history.shown.is_empty() {
        return html;
    }
    let label = |step: u64| format!("{what} after {} steps", grouped(step));
    // The script puts the selected one, large, into the figure.
    html += "<div class=\"sheets\"><figure></figure>\n";
    let end = history.shown.len() - 1;
    let hidden = if end == 0 { " hidden" } else { "" };
    let _ = writeln!(
        html,
        "<div class=\"scrub\"{hidden}><input type=\"range\" min=\"0\" max=\"{end}\" value=\"{end}\" step=\"1\" aria-label=\"{what}: step\"><output></output></div>\n<div class=\"thumbs\"{hidden}>"
    );
    for (step, picture) in &history.shown {
        let _ = writeln!(
            html,
            "<button type=\"button\" data-step=\"step {0}\">{1}{0}</button>",
            grouped(*step),
            image(picture, "thumb", &label(*step))
        );
    }
    html + "</div></div>\n"
}

fn log(journal: &Journal) -> String {
    if journal.total == 0 {
        return "<p class=\"quiet\">No notes or warnings.</p>\n".into();
    }
    let mut html = String::new();
    if journal.entries.len() < journal.total {
        let _ = writeln!(
            html,
            "<p class=\"quiet\">The newest {} of {} entries.</p>",
            grouped(journal.entries.len()),
            grouped(journal.total)
        );
    }
    html += "<p class=\"filter\"><label><input type=\"checkbox\" id=\"only-warnings\"> warnings only</label></p>\n";
    html += "<div class=\"log\" tabindex=\"0\" role=\"region\" aria-label=\"Log\"><table><thead><tr><th>Time</th><th>Stage</th><th>Step</th><th>Kind</th><th>Text</th></tr></thead><tbody>\n";
    for entry in &journal.entries {
        let class = if entry.is_warning() {
            " class=\"warning\""
        } else {
            ""
        };
        let _ = writeln!(
            html,
            "<tr{class}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            entry.time.map_or(String::new(), date),
            escape(&entry.stage),
            entry.step.map_or(String::new(), grouped),
            escape(&entry.kind),
            escape(&entry.text)
        );
    }
    html + "</tbody></table></div>\n"
}

/// The configuration, each of its tables to fold.
fn config(text: &str) -> String {
    let mut html = String::from(
        "<p class=\"filter\"><label for=\"find\">Find</label> <input type=\"search\" id=\"find\" placeholder=\"a key or a value\"> <output id=\"found\" for=\"find\"></output></p>\n<div class=\"settings\">\n",
    );
    let mut lines = String::new();
    let mut name = "top level";
    let section = |html: &mut String, name: &str, lines: &mut String| {
        if !lines.is_empty() {
            let name = escape(name);
            let _ = writeln!(
                html,
                "<details open><summary>{name}</summary><pre>{lines}</pre></details>"
            );
            lines.clear();
        }
    };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with('[') && line.trim_end().ends_with(']') {
            section(&mut html, name, &mut lines);
            name = line.trim_end();
            continue;
        }
        let shown = match line.split_once(" = ") {
            Some((key, value)) => {
                format!(
                    "<span class=\"key\">{}</span> = {}",
                    escape(key),
                    escape(value)
                )
            }
            None => escape(line),
        };
        let _ = write!(lines, "<span class=\"line\">{shown}</span>");
    }
    section(&mut html, name, &mut lines);
    html + "</div>\n"
}

fn hardware(machines: &[Hardware]) -> String {
    if machines.is_empty() {
        return "<p class=\"quiet\">Not recorded.</p>\n".into();
    }
    let mut html = String::new();
    if machines.len() > 1 {
        html += "<p class=\"quiet\">In the order of their use.</p>\n";
    }
    html += "<div class=\"machines\">\n";
    for machine in machines {
        html += "<article class=\"card\"><dl>\n";
        fact(&mut html, "Device", &machine.device, "");
        if let Some(cpu) = &machine.cpu {
            fact(&mut html, "CPU", cpu, "");
        }
        fact(&mut html, "Threads", &machine.cores.to_string(), "");
        if let Some(mib) = machine.memory_mib {
            fact(&mut html, "Memory", &size(mib.saturating_mul(1 << 20)), "");
        }
        fact(&mut html, "CPU kernels", &machine.kernels, "");
        fact(&mut html, "System", &machine.os, &machine.architecture);
        fact(&mut html, "Built with", &machine.built_with.join(", "), "");
        fact(&mut html, "ldm", &machine.ldm_version, "");
        html += "</dl></article>\n";
    }
    html + "</div>\n"
}

fn thinning(report: &Report) -> String {
    let charts = report.stages.iter().flat_map(|stage| &stage.charts);
    let longest = charts
        .flat_map(|chart| &chart.lines)
        .map(|line| line.recorded)
        .max();
    match longest {
        Some(longest) if longest > MAX_POINTS => format!(
            "Curves of more than {} values show the lowest and the highest of each stretch of equal length, so that no spike is lost; the \
             smoothed line follows the stretches’ means. The longest curve has {} values; all are in metrics.jsonl.",
            grouped(MAX_POINTS),
            grouped(longest)
        ),
        _ => "The curves show every value that was recorded.".into(),
    }
}

/// What the script draws.
fn data(report: &Report) -> Json {
    let stages = report.stages.iter().map(|stage| {
        let id = stage.stage.folder();
        let charts: Vec<Json> = stage.charts.iter().map(chart).collect();
        let alerts = report.journal.entries.iter().filter_map(|entry| {
            let step = entry
                .step
                .filter(|_| entry.is_warning() && entry.stage == id)?;
            Some(json!({"step": step, "kind": entry.kind, "text": entry.text}))
        });
        json!({"id": id, "charts": charts, "alerts": alerts.collect::<Vec<_>>()})
    });
    json!({"stages": stages.collect::<Vec<_>>()})
}

fn chart(chart: &Chart) -> Json {
    let figure = &chart.figure;
    let lines: Vec<Json> = (chart.lines.iter())
        .map(|line| self::line(line, &figure.family))
        .collect();
    json!({
        "section": figure.section,
        "title": figure.title,
        "family": figure.family,
        "about": figure.about,
        "exact": figure.exact,
        "lines": lines,
    })
}

fn line(line: &Line, family: &str) -> Json {
    // Of `kl/3` in the chart `kl` what differs; of `logits_real` in `logits` likewise.
    let label = line.name.strip_prefix(family).unwrap_or(&line.name);
    json!({
        "name": line.name,
        "label": label.trim_start_matches(['/', '_']),
        "steps": line.points.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        "values": line.points.iter().map(|(_, value)| value.map(rounded)).collect::<Vec<_>>(),
        "meanSteps": line.means.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        "means": line.means.iter().map(|(_, value)| rounded(*value)).collect::<Vec<_>>(),
        "recorded": line.recorded,
        "notFinite": line.not_finite,
    })
}

/// Six significant digits: more would only make the page longer.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
