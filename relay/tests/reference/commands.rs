//! The command line and the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use clap::{Arg, Command};

use super::cell;

/// What is read of the environment beside options, and what for.
const BESIDE: [(&str, &str); 4] = [
    (
        "POSTRIDER_TOKEN",
        "The token for an admin API at a URL: `postrider token add`.",
    ),
    ("POSTRIDER_PASSWORD", "The password for `postrider send --user`."),
    (
        "RUST_LOG",
        "How much is logged, such as `info` or `info,relay::delivery=debug`; comes before `log.level`.",
    ),
    (
        "password_env",
        "Variables that hold the passwords of smart hosts and proxies have the names that the configuration gives them: `password_env` of a \
         `[[smart_host]]`, `proxy_password_env` of a `[[source]]`.",
    ),
];

pub fn commands() -> String {
    let mut text =
        "\n## Commands\n\nExit codes: 0 done, 1 failed, 2 wrong usage or configuration.\n".to_owned();
    let mut root = relay::cli::command();
    root.build();
    command(&root, &mut text);
    text
}

fn command(of: &Command, text: &mut String) {
    let subcommands: Vec<_> = of
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
        .collect();
    if subcommands.is_empty() {
        let name = of.get_bin_name().unwrap_or_else(|| of.get_name());
        let about = of.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = of.clone().render_usage().to_string();
        let usage = usage
            .trim_start_matches("Usage: ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        writeln!(
            text,
            "\n### {name}\n\n{about}.\n\n`{usage}`\n\n| argument | meaning |\n|---|---|"
        )
        .unwrap();
        for argument in of
            .get_arguments()
            .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
        {
            let help = argument.get_help().map(ToString::to_string);
            let help = help.unwrap_or_else(|| panic!("{name}: {} says nothing of itself", argument.get_id()));
            writeln!(
                text,
                "| {} | {}{} |",
                shape(argument),
                sentence(&help),
                extras(argument)
            )
            .unwrap();
        }
    }
    for sub in subcommands {
        command(sub, text);
    }
}

/// Help texts of one sentence go without a full stop.
fn sentence(help: &str) -> String {
    let text = cell(help);
    if text.ends_with(['.', ']', ')']) {
        text
    } else {
        text + "."
    }
}

/// How it is written.
fn shape(argument: &Arg) -> String {
    let takes = argument.get_action().takes_values();
    let value = argument.get_value_names().map(|names| {
        names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    });
    match (argument.get_long(), value) {
        (Some(long), Some(value)) if takes => format!("`--{long} {value}`"),
        (Some(long), _) => format!("`--{long}`"),
        (None, value) => format!(
            "`{}`",
            value.unwrap_or_else(|| argument.get_id().to_string().to_uppercase())
        ),
    }
}

fn extras(argument: &Arg) -> String {
    let mut extras = String::new();
    let values = argument.get_possible_values();
    if argument.get_action().takes_values() && !values.is_empty() {
        let values: Vec<_> = values
            .iter()
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        write!(extras, " One of {}.", values.join(", ")).unwrap();
    }
    let defaults = argument.get_default_values();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        let defaults: Vec<_> = defaults.iter().map(|value| value.to_string_lossy()).collect();
        write!(extras, " Default: `{}`.", defaults.join(" ")).unwrap();
    }
    if let Some(variable) = argument.get_env() {
        write!(extras, " Or the variable `{}`.", variable.to_string_lossy()).unwrap();
    }
    extras
}

pub fn environment() -> String {
    let mut variables = BTreeMap::new();
    collect(&relay::cli::command(), &mut variables);
    for (name, meaning) in BESIDE {
        variables.insert(name.to_owned(), meaning.to_owned());
    }
    for name in read_by_source() {
        assert!(variables.contains_key(&name), "{name} is read, and not described");
    }
    let mut text = "\n## Environment\n\n| variable | meaning |\n|---|---|\n".to_owned();
    for (name, meaning) in variables {
        writeln!(text, "| `{name}` | {} |", sentence(&meaning)).unwrap();
    }
    text
}

fn collect(command: &Command, variables: &mut BTreeMap<String, String>) {
    for argument in command.get_arguments() {
        if let Some(variable) = argument.get_env() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let way = argument
                .get_long()
                .map_or_else(|| "the argument".to_owned(), |long| format!("`--{long}`"));
            variables.insert(
                variable.to_string_lossy().into_owned(),
                format!("Stands in for {way}. {help}"),
            );
        }
    }
    command.get_subcommands().for_each(|sub| collect(sub, variables));
}

/// Variables of ours that the source names; but for the switches of builds that ship nowhere.
fn read_by_source() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    super::each_source(&mut |text| {
        for (at, _) in text.match_indices("\"POSTRIDER_") {
            let name: String = text[at + 1..]
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                .collect();
            names.insert(name);
        }
    });
    names.remove("POSTRIDER_SABOTAGE");
    assert!(names.contains("POSTRIDER_CONFIG"));
    names
}
