//! The command line as it is typed.

use clap::{CommandFactory, Parser};

use super::{Cli, CliError, Command, Exit};
use crate::api::failure::Failure;
use crate::cli::args::{MachineCommand, NodeCommand};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("smartnode").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_of_this_version_is_there_and_no_later_one() {
    for line in [
        "init --detach --name n1 --zone a --label disk=ssd",
        "join n1:7420 n2:7420 --token sn1-x --data-dir /srv/n2 --listen 127.0.0.1:7420 --admin-listen 127.0.0.1:7421",
        "start --admin-socket /run/x.sock --advertise 10.0.0.1:7420 --log-format json",
        "stop --timeout 5s",
        "leave --purge --yes",
        "status --wait-tolerance 1 --timeout 1m -o json",
        "version -o yaml",
        "completion bash",
        "service install",
        "service uninstall --unit-dir /tmp",
        "token create --role worker --ttl 30m --uses 3",
        "token list -o name",
        "token revoke 0123456789abcdef",
        "node list",
        "node inspect n1",
        "node cordon n1",
        "node uncordon n1",
        "node drain n1 --wait",
        "node remove n1 --force -y",
        "machine list --state running --node n1 -l a=b",
        "machine inspect web",
        "machine start web --wait",
        "machine stop web",
        "machine restart web",
        "machine delete web --yes --dry-run",
        "machine exec web -- cat -n",
        "machine logs web --follow --tail 10",
        "machine forward web 8080:80",
        "machine move web --to n2 --wait",
        "image from-host tools /bin/sh /bin/cat",
        "image list --tenant acme",
        "image delete tools",
        "tenant create acme --parent default",
        "tenant list",
        "tenant inspect acme",
        "tenant delete acme",
        "events --follow --since 1-2",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "doctor",
        "top",
        "network list",
        "machine console web",
        "machine resize web",
        "image import x",
        "image pull x",
        "tenant quota acme",
        "machine create web --image i --network lan",
        "machine create web --image i --volume v:/data",
        "machine exec -t web -- sh",
    ] {
        assert!(parse(line).is_err(), "{line} is of a later version");
    }
    let mut help = Cli::command().render_long_help().to_string();
    for command in Cli::command().get_subcommands_mut() {
        help.push_str(&command.render_long_help().to_string());
    }
    for word in ["doctor", "console", "resize", "network", "volume", "quota", " top "] {
        assert!(!help.contains(word), "{word} is of a later version");
    }
}

#[test]
fn a_machine_is_described_in_the_units_of_people() {
    let line = "machine create web --image http --cpu 0.5 --memory 256MiB --burst-memory 1GiB --publish 127.0.0.1:8080:80 \
                --env A=b=c --label tier=front --exclusive --restart on-failure --node n2 -- /bin/http --port 80";
    let Command::Machine(MachineCommand::Create(create)) = parse(line).unwrap().command else { panic!("create") };
    assert_eq!((create.cpu, create.memory, create.burst_memory), (Some(500), Some(256 << 20), Some(1 << 30)));
    assert_eq!(create.publish[0].host_port, 8080);
    assert_eq!(create.environment, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(create.command, ["/bin/http", "--port", "80"]);
    assert!(create.exclusive);
}

#[test]
fn a_wrong_command_line_names_the_value_and_the_rule() {
    for (line, words) in [
        ("machine create web --image i --memory 1MB", "256MiB"),
        ("status --timeout 5", "30s"),
        ("token create --role king", "voter or worker"),
        ("node list --admin ftp://x", "unix:/path"),
        ("machine forward web 0", "LOCAL:PORT"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.use_stderr() && error.to_string().contains(words), "{line}: {error}");
    }
}

#[test]
fn global_flags_may_stand_anywhere() {
    let cli = parse("node drain n1 --admin http://127.0.0.1:7421 -q --wait").unwrap();
    assert!(cli.global.quiet && cli.global.wait);
    assert!(matches!(cli.command, Command::Node(NodeCommand::Drain(_))));
}

#[test]
fn an_error_is_its_cause_an_empty_line_and_the_next_command() {
    let error = CliError::from(Failure::not_found("machine", "web"));
    assert_eq!(error.exit, Exit::NotFound);
    assert_eq!(error.text(false), "error: there is no machine \"web\"\n\nhint: smartnode machine list\n");
    assert_eq!(error.text(true), "error: there is no machine \"web\"\n");
}
