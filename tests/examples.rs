//! The examples of deployments say what the program understands: variables, flags, configurations inside.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use adit::cli::Args;
use adit::config::{ClientConfig, Inputs, ServerConfig, unknown_variable};
use clap::Parser as _;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(name: &str) -> String {
    let path = root().join("examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    let parts = text.split("\n---\n");
    parts
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

/// Every `container` below a value: what has an image.
fn containers<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    if value.get("image").is_some() {
        found.push(value);
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| containers(item, found)),
        Value::Object(entries) => entries.values().for_each(|item| containers(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The variables of a container, as Compose or as Kubernetes writes them, above those of the image.
fn variables(container: &Value) -> HashMap<String, String> {
    let mut variables = image_variables();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    if let Some(map) = container.get("environment").and_then(Value::as_object) {
        variables.extend(map.iter().map(|(name, value)| (name.clone(), text(value))));
    }
    if let Some(list) = container.get("env").and_then(Value::as_array) {
        variables.extend(
            list.iter()
                .map(|item| (text(&item["name"]), text(&item["value"]))),
        );
    }
    for value in variables.values_mut() {
        // ${NAME:-default} of Compose
        if let Some((_, default)) = value.split_once(":-") {
            *value = default.trim_end_matches('}').to_owned();
        }
    }
    variables
}

/// The variables that the Dockerfile sets.
fn image_variables() -> HashMap<String, String> {
    let text = fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile");
    let words = text
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    let variables: HashMap<_, _> = words
        .filter(|(name, _)| name.starts_with("ADIT_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(variables.len(), 3, "{variables:?}");
    variables
}

fn command(container: &Value) -> Option<String> {
    let words = container.get("args").or_else(|| container.get("command"))?;
    words[0].as_str().map(str::to_owned)
}

/// Loads what a container of the image would load, its file from `folder` (Compose) or `inline` (Kubernetes).
fn check(name: &str, container: &Value, file: Option<&str>) {
    let mut variables = variables(container);
    for variable in variables.keys() {
        assert_eq!(unknown_variable(variable), None, "{name}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = file.map(|text| {
        let path = folder.path().join("server.yaml");
        fs::write(&path, text).expect("written");
        path
    });
    // The key lies in a volume or a secret; here one is made.
    let key = folder.path().join("key").display().to_string();
    variables.insert("ADIT_KEY_FILE".to_owned(), key);
    variables.insert("ADIT_GENERATE_KEY".to_owned(), "true".to_owned());
    variables.insert("STATE_DIRECTORY".to_owned(), "/var/lib/adit".to_owned());
    let environment = |variable: &str| variables.get(variable).cloned();
    let inputs = Inputs {
        file: path.as_deref(),
        environment: &environment,
        flags: &[],
    };
    let warnings = match command(container).as_deref() {
        Some("server") => {
            let loaded =
                ServerConfig::load(inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(
                !loaded.config.clients.is_empty(),
                "{name}: nobody could connect"
            );
            loaded.warnings
        }
        Some("client") => {
            let loaded =
                ClientConfig::load(inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
            loaded.warnings
        }
        other => panic!("{name}: the image is told {other:?}"),
    };
    assert!(warnings.is_empty(), "{name}: {warnings:?}");
}

/// The containers of our image in a file.
fn ours(documents: &[Value]) -> Vec<&Value> {
    let mut found = Vec::new();
    documents
        .iter()
        .for_each(|document| containers(document, &mut found));
    found.retain(|container| container["image"] == "adit");
    found
}

#[test]
fn compose_gives_the_image_what_it_understands() {
    let documents = documents("compose/compose.yaml");
    let services = ours(&documents);
    assert_eq!(services.len(), 2);
    for service in services {
        let is_server = command(service).as_deref() == Some("server");
        let file = is_server.then(|| read("compose/server.yaml"));
        check("compose.yaml", service, file.as_deref());
        assert_eq!(service["read_only"], true);
        assert_eq!(service["cap_drop"][0], "ALL");
    }
}

#[test]
fn kubernetes_gives_the_image_what_it_understands() {
    let server = documents("kubernetes/server.yaml");
    let file = server
        .iter()
        .find_map(|document| document["data"]["server.yaml"].as_str())
        .expect("a configuration in a ConfigMap");
    let found = ours(&server);
    assert_eq!(found.len(), 1);
    check("server.yaml", found[0], Some(file));
    let side_car = documents("kubernetes/sidecar.yaml");
    let found = ours(&side_car);
    assert_eq!(found.len(), 1);
    check("sidecar.yaml", found[0], None);
}

#[test]
fn units_and_workflow_start_the_program_as_it_takes_it() {
    for kind in ["server", "client"] {
        let unit = read(&format!("systemd/adit-{kind}.service"));
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let words = line
            .expect("what it starts")
            .replace("/usr/bin/adit", "adit");
        let words: Vec<_> = words.split(' ').collect();
        Args::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let set = unit
            .lines()
            .filter_map(|line| line.strip_prefix("Environment=ADIT_"));
        for variable in set.filter_map(|text| text.split('=').next()) {
            assert_eq!(unknown_variable(&format!("ADIT_{variable}")), None);
        }
    }
    let workflow = documents("github-actions/adit-run.yml");
    let steps = workflow[0]["jobs"]["deploy"]["steps"]
        .as_array()
        .expect("steps");
    let step = steps.last().expect("the step that runs");
    for variable in step["env"].as_object().expect("variables").keys() {
        assert_eq!(unknown_variable(variable), None);
    }
    let script = step["run"].as_str().expect("a script");
    let line = script.lines().find(|line| line.starts_with("adit run"));
    let words: Vec<_> = line.expect("adit run").split(' ').collect();
    Args::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

#[test]
fn configuration_of_the_debian_package_is_right() {
    let text = fs::read_to_string(root().join("packaging/deb/server.yaml")).expect("it is there");
    let folder = tempfile::tempdir().expect("a folder");
    let text = text.replace("/var/lib/adit", &folder.path().display().to_string());
    let file = folder.path().join("server.yaml");
    fs::write(&file, text).expect("written");
    let environment = |name: &str| (name == "STATE_DIRECTORY").then(|| "/var/lib/adit".to_owned());
    let loaded = ServerConfig::load(Inputs {
        file: Some(&file),
        environment: &environment,
        flags: &[],
    });
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    assert!(loaded.config.process.new_key.is_some());
    assert_eq!(loaded.config.listen.len(), 3);
}
