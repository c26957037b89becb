//! What other machines than the one that measured last have shown.
//!
//! Which ratio is how large depends on the machine: how fast its processors encrypt, what waking a thread
//! costs, how far its memory is. A run on another machine therefore takes the page, but not the other's
//! figures: they stay in a folder of that machine, and its ratios beside the new ones.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cyphonic_lab::figures::Figures;

/// A promise: what it says, its bound, and what became of it.
pub(super) type Row = [String; 3];

/// Before `new` takes the place of the figures in `file`: keeps them if they are another machine's.
pub(super) fn set_aside(file: &Path, new: &Figures) -> Result<()> {
    let name = file.file_name().context("no file's name")?;
    let of = |machine: &str| file.with_file_name("machines").join(slug(machine)).join(name);
    if file.exists() {
        let old = Figures::read(file)?;
        if old.machine().cpu != new.machine().cpu {
            let aside = of(&old.machine().cpu);
            let folder = aside.parent().context("no folder")?;
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            old.write(&aside)?;
        }
    }
    // What this machine showed earlier is out of date now.
    let earlier = of(&new.machine().cpu);
    if earlier.exists() {
        fs::remove_file(&earlier).with_context(|| format!("cannot remove {}", earlier.display()))?;
    }
    Ok(())
}

/// A table of the promises by machine, that of `current` first; nothing where no other machine has measured.
pub(super) fn table(file: &Path, current: &Figures, judge: impl Fn(&Figures) -> Vec<Row>) -> Result<String> {
    let others = others(file)?;
    if others.is_empty() {
        return Ok(String::new());
    }
    let all: Vec<&Figures> = [current].into_iter().chain(&others).collect();
    let mut text =
        String::from("### The same promises on each machine that has measured\n\n| What | Promised |");
    for figures in &all {
        let machine = figures.machine();
        let _ = write!(text, " {}, {} processors, Linux {} |", machine.cpu, machine.cores, machine.kernel);
    }
    let _ = writeln!(text, "\n|---|---|{}", "---|".repeat(all.len()));
    let judged: Vec<Vec<Row>> = all.iter().map(|figures| judge(figures)).collect();
    for (n, [what, bound, _]) in judged.first().into_iter().flatten().enumerate() {
        let _ = write!(text, "| {what} | {bound} |");
        for rows in &judged {
            let reached = rows.get(n).map_or("", |[_, _, reached]| reached);
            let _ = write!(text, " {reached} |");
        }
        text.push('\n');
    }
    text.push('\n');
    Ok(text)
}

/// What other machines' folders have of `file`'s name, by the machines' names.
fn others(file: &Path) -> Result<Vec<Figures>> {
    let folder = file.with_file_name("machines");
    let name = file.file_name().context("no file's name")?;
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry.context("cannot list the machines")?.path().join(name));
    }
    files.retain(|file| file.exists());
    files.sort();
    files.iter().map(|file| Ok(Figures::read(file)?)).collect()
}

/// A machine's name as a folder's.
fn slug(cpu: &str) -> String {
    let parts = cpu.to_lowercase();
    let parts = parts.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cpu: &str, note: &str) -> Figures {
        let mut figures = Figures::new("bench");
        figures.note("note", note);
        let text = serde_json::to_string(&figures).unwrap();
        let text = text.replace(&serde_json::to_string(&figures.machine().cpu).unwrap(), &format!("{cpu:?}"));
        serde_json::from_str(&text).unwrap()
    }

    fn publish(file: &Path, figures: &Figures) {
        set_aside(file, figures).unwrap();
        figures.write(file).unwrap();
    }

    #[test]
    fn each_machine_keeps_its_last_figures_and_the_latest_has_the_page() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tunnels.json");
        let judge = |figures: &Figures| {
            let note = figures.notes().next().unwrap().1.to_owned();
            vec![["fast".to_owned(), "≥ 1".to_owned(), note]]
        };
        let shown = |current: &Figures| table(&file, current, judge).unwrap();
        let (first, second) = (of("Intel(R) Xeon(R)", "one"), of("AMD EPYC", "two"));
        publish(&file, &first);
        publish(&file, &of("Intel(R) Xeon(R)", "three"));
        assert_eq!(shown(&first), "", "there is no other");
        publish(&file, &second);
        assert!(folder.path().join("machines/intel-r-xeon-r/tunnels.json").exists());
        assert!(shown(&second).contains("| fast | ≥ 1 | two | three |"), "{}", shown(&second));
        let again = of("Intel(R) Xeon(R)", "four");
        publish(&file, &again);
        assert!(shown(&again).contains("| fast | ≥ 1 | four | two |"), "{}", shown(&again));
    }
}
