use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use image::{Rgb, RgbImage};

use super::{
    curves::{self, Line, MAX_POINTS},
    gather,
    html::escape,
    page::render,
    progress::State,
    sheets::{History, Picture},
    write_report,
};
use crate::{error::Error, hardware::Hardware, sheet::save_png};

const CONFIG: &str = "seed = 1\n\n[stage1.training]\nsteps = 40\nbatch_size = 4\naccumulation = 2\n\n[stage2.training]\nsteps = 10\n";

struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run = Self { dir };
        run.write("config.toml", CONFIG);
        run
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A page whose pictures have noise, so that they don't compress.
    fn write_sheet(&self, name: &str, side: u32) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let sheet = RgbImage::from_fn(side, side, |x, y| {
            let bits = (x * 7919 + y * 104_729).wrapping_mul(2_654_435_761);
            Rgb([(bits >> 24) as u8, (bits >> 16) as u8, (bits >> 8) as u8])
        });
        save_png(&path, &sheet, &[]).unwrap();
    }

    fn page(&self) -> String {
        render(&gather(self.path(), SystemTime::now()).unwrap())
    }
}

fn metrics(steps: u64) -> String {
    (1..=steps)
        .map(|step| {
            let (seconds, loss) = (2.0 * step as f64, 1.0 / step as f64);
            let psnr = if step % 10 == 0 { format!(",\"val_psnr\":{step}") } else { String::new() };
            format!("{{\"step\":{step},\"seconds\":{seconds},\"total\":{loss},\"seconds_per_step\":2.0{psnr}}}\n")
        })
        .collect()
}

fn listing(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(
                listing(&path)
                    .into_iter()
                    .map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            );
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn a_run_that_only_has_its_configuration() {
    let run = Run::new();
    let report = gather(run.path(), SystemTime::now()).unwrap();
    assert_eq!(report.stages.len(), 2);
    for stage in &report.stages {
        assert_eq!(stage.progress.state, State::Waiting);
        assert!(stage.charts.is_empty() && stage.history.shown.is_empty());
    }
    assert!(run.page().contains("not started"));
}

#[test]
fn a_running_run_is_shown_as_far_as_it_is() {
    let run = Run::new();
    run.write(
        "stage1/metrics.jsonl",
        metrics(20) + "{\"step\":21,\"seconds\":4",
    );
    run.write_sheet("stage1/samples/step-00000020.png", 8);
    run.write("stage1/samples/.step-00000021.png.partial-7", "half");
    run.write("stage1/checkpoints/step-00000020/state.json", "{}");
    run.write("stage1/checkpoints/step-00000020/vae.safetensors", [0; 100]);
    run.write(
        "stage1/checkpoints/.step-00000021.partial-7/vae.safetensors",
        [0; 9],
    );
    run.write("stage1/events.out.tfevents.1.ldm.1.0", "");
    run.write("stage1/events.out.tfevents.2.ldm.1.0", "");

    let report = gather(run.path(), SystemTime::now()).unwrap();
    let stage = &report.stages[0];
    let progress = &stage.progress;
    assert_eq!(progress.state, State::Running);
    assert_eq!((progress.done, progress.total), (20, Some(40)));
    assert_eq!(progress.remaining(), Some(40.0));
    assert_eq!(progress.images, Some(8));
    assert_eq!((progress.seconds, progress.sessions), (40.0, 2));
    assert_eq!(progress.damaged, 0);
    assert_eq!(progress.checkpoints, [("step-00000020".to_owned(), 102)]);
    assert_eq!(progress.best.len(), 1);
    assert_eq!((progress.best[0].value, progress.best[0].step), (20.0, 20));
    assert_eq!((stage.history.total, stage.history.damaged), (1, 0));
    assert_eq!(report.stages[1].progress.state, State::Waiting);

    let later = SystemTime::now() + Duration::from_secs(3600);
    let state = |now| gather(run.path(), now).unwrap().stages[0].progress.state;
    assert_eq!(state(later), State::Stopped);
    // A clock that went back.
    assert_eq!(state(SystemTime::UNIX_EPOCH), State::Running);
    run.write("stage1/metrics.jsonl", metrics(40));
    assert_eq!(state(later), State::Finished);
}

#[test]
fn figures_that_are_not_finite_leave_a_gap() {
    let run = Run::new();
    let text = "{\"step\":1,\"seconds\":1,\"kl\":1.5,\"kl/0\":1}\n{\"step\":2,\"seconds\":2,\"kl\":null}\nnonsense\n{\"step\":3,\"seconds\":3,\"kl\":2}\n";
    run.write("stage1/metrics.jsonl", text);
    let curves = curves::read(&run.path().join("stage1/metrics.jsonl")).unwrap();
    assert_eq!(curves.damaged, 1);
    let charts = curves.charts();
    assert_eq!(charts.len(), 1, "a family is one chart");
    let lines = &charts[0].lines;
    assert_eq!(
        (lines[0].name.as_str(), lines[1].name.as_str()),
        ("kl", "kl/0")
    );
    assert_eq!(lines[0].points, [(1, Some(1.5)), (2, None), (3, Some(2.0))]);
    assert_eq!(lines[0].not_finite, 1);
    assert!(run.page().contains("[1.5,null,2.0]"));
}

#[test]
fn what_a_run_repeats_counts() {
    let run = Run::new();
    let line =
        |step: u64, loss: f64| format!("{{\"step\":{step},\"seconds\":1,\"loss\":{loss}}}\n");
    let text: String = [line(1, 1.0), line(2, 2.0), line(3, 3.0), line(2, 20.0)].concat();
    run.write("stage2/metrics.jsonl", text);
    let curves = curves::read(&run.path().join("stage2/metrics.jsonl")).unwrap();
    assert_eq!(curves.columns["loss"], [(1, 1.0), (2, 20.0)]);
    assert_eq!(curves.last_step, 2);
}

#[test]
fn no_spike_is_lost_in_a_long_run() {
    let mut column: Vec<(u64, f64)> = (0..123_457)
        .map(|step| (step, (step as f64 / 900.0).sin()))
        .collect();
    column[70_001].1 = 1e6;
    column[70_500].1 = -50.0;
    column[90_210].1 = f64::NAN;
    let line = Line::new("loss", &column);
    assert!(line.points.len() <= MAX_POINTS + 1, "{}", line.points.len());
    for kept in [
        (0, Some(column[0].1)),
        (70_001, Some(1e6)),
        (70_500, Some(-50.0)),
        (90_210, None),
        (123_456, Some(column[123_456].1)),
    ] {
        assert!(line.points.contains(&kept), "{kept:?}");
    }
    assert!(line.points.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!((line.recorded, line.not_finite), (123_457, 1));
    let (step, mean) = line.means[10];
    assert!((mean - (step as f64 / 900.0).sin()).abs() < 1e-2, "{mean}");

    let few = Line::new("loss", &column[..MAX_POINTS]);
    assert_eq!(few.points.len(), MAX_POINTS);
    assert!(few.means.is_empty());
}

#[test]
fn channels_are_in_the_order_of_their_numbers() {
    let run = Run::new();
    run.write(
        "stage1/metrics.jsonl",
        "{\"step\":1,\"seconds\":1,\"kl/10\":1,\"kl/2\":1,\"kl\":1,\"logits_real\":1,\"logits_fake\":2,\"zeta\":3}\n",
    );
    let charts = curves::read(&run.path().join("stage1/metrics.jsonl"))
        .unwrap()
        .charts();
    let names: Vec<Vec<&str>> = (charts.iter())
        .map(|chart| chart.lines.iter().map(|line| line.name.as_str()).collect())
        .collect();
    assert_eq!(
        names,
        [
            vec!["kl", "kl/2", "kl/10"],
            vec!["logits_fake", "logits_real"],
            vec!["zeta"]
        ]
    );
}

#[test]
fn too_many_sheets_are_thinned_and_made_smaller() {
    let run = Run::new();
    for step in 1..=9 {
        run.write_sheet(&format!("samples/step-{step:08}.png"), 200);
    }
    run.write("samples/step-00000010.png", "no picture");
    let folder = run.path().join("samples");
    let all = History::read(&folder, usize::MAX);
    assert_eq!((all.shown.len(), all.total, all.damaged), (9, 10, 1));
    assert!(
        !all.reduced
            && all.shown[0]
                .1
                .data_uri()
                .starts_with("data:image/png;base64,iVBOR")
    );

    let budget = 60_000;
    let some = History::read(&folder, budget);
    let steps: Vec<u64> = some.shown.iter().map(|(step, _)| *step).collect();
    assert!(some.reduced && some.bytes() <= budget);
    assert!(
        steps.len() >= 2 && steps[0] == 1 && steps.last() == Some(&9),
        "{steps:?}"
    );
}

#[test]
fn a_picture_that_was_cut_off_is_none() {
    let run = Run::new();
    run.write_sheet("a.png", 50);
    let path = run.path().join("a.png");
    assert!(Picture::read(&path, usize::MAX, false).is_some());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(Picture::read(&path, usize::MAX, false).is_none());
}

#[test]
fn nothing_from_the_run_becomes_markup() {
    let run = Run::new();
    let bad = "</script><img src=x onerror=alert(1)><script>alert(2)</script>{{config}}";
    run.write(
        "config.toml",
        format!("{CONFIG}\n['{bad}']\n'{bad}' = '{bad}'\n"),
    );
    let name = serde_json::to_string(bad).unwrap();
    run.write(
        "stage1/metrics.jsonl",
        format!("{{\"step\":1,\"seconds\":1,{name}:1}}\n"),
    );
    run.write(
        "log.jsonl",
        format!("{{\"stage\":{name},\"step\":1,\"kind\":{name},\"text\":{name}}}\n{{\"stage\":\"stage1\",\"step\":1,\"kind\":\"warning\",\"text\":{name}}}\n"),
    );
    let mut hardware = Hardware::detect(bad.into(), vec![bad.into()]);
    hardware.cpu = Some(bad.into());
    hardware.record(&run.path().join("hardware.json")).unwrap();
    run.write(
        &format!("stage1/checkpoints/{}/x", bad.replace('/', "|")),
        "",
    );

    let page = run.page();
    assert!(!page.contains("<img src=x"), "an element from the run");
    assert!(page.contains(&escape(bad)));
    assert_eq!(page.matches("</script>").count(), 2, "the page's own");
    assert_eq!(page.matches("<script").count(), 2, "the page's own");
}

#[test]
fn the_log_is_listed_and_its_warnings_marked() {
    let run = Run::new();
    run.write("stage1/metrics.jsonl", metrics(3));
    run.write(
        "log.jsonl",
        "{\"time\":1795535665,\"stage\":\"stage1\",\"step\":1,\"kind\":\"note\",\"text\":\"begun\"}\n[1]\n{\"time\":1795535670.5,\"stage\":\"stage1\",\"step\":2,\"kind\":\"warning\",\"text\":\"collapse\"}\n{\"time\":17",
    );
    let report = gather(run.path(), SystemTime::now()).unwrap();
    assert_eq!((report.journal.total, report.journal.warnings), (2, 1));
    assert_eq!(report.journal.entries[0].text, "collapse", "newest first");
    let page = render(&report);
    assert!(page.contains("2026-11-24 15:54 UTC"));
    assert!(page.contains(r#""alerts":[{"kind":"warning","step":2,"text":"collapse"}]"#));
}

#[test]
fn damaged_configuration_and_hardware_are_named() {
    let run = Run::new();
    run.write("config.toml", "seed = = 1");
    run.write("hardware.json", "[{");
    run.write("stage1/metrics.jsonl", metrics(3));
    let page = run.page();
    assert!(page.contains("config.toml can&#39;t be understood"));
    assert!(page.contains("hardware.json is not what it should be"));
    assert!(page.contains("of ? steps"));
}

#[test]
fn only_the_report_is_written() {
    let run = Run::new();
    run.write("stage1/metrics.jsonl", metrics(5) + "{\"st");
    let before = listing(run.path());
    let out = run.path().join("report.html");
    for _ in 0..2 {
        write_report(run.path(), &out).unwrap();
        let mut after = listing(run.path());
        assert!(after.remove("report.html").is_some());
        assert_eq!(after, before);
    }
}

#[test]
fn what_is_no_run_or_no_report_is_refused() {
    let run = Run::new();
    let out = run.path().join("report.html");
    let nothing = tempfile::tempdir().unwrap();
    assert!(matches!(
        write_report(nothing.path(), &out),
        Err(Error::NoRun(_))
    ));
    assert!(matches!(
        write_report(&run.path().join("config.toml"), &out),
        Err(Error::NoRun(_))
    ));
    assert!(matches!(
        write_report(&run.path().join("missing"), &out),
        Err(Error::Read { .. })
    ));
    let config = run.path().join("config.toml");
    assert!(matches!(
        write_report(run.path(), &config),
        Err(Error::Request(_))
    ));
    assert_eq!(fs::read_to_string(config).unwrap(), CONFIG);
    assert!(!out.exists());
}
