//! Which test reaches which limit of the balancer. A limit that nothing reaches is a guess about what happens there.

use crate::house::House;

/// Where the limits stand.
const FILE: &str = "src/balancer/limits.rs";

/// Every constant there, and a test that reaches it, or shows the pace that it sets.
const REACHED: &[(&str, &str)] = &[
    ("EVENTS_PER_TURN_MAX", "a_herd_of_events_beyond_a_turn_and_a_queue_is_applied_whole"),
    ("EVENTS_WAITING_MAX", "a_herd_of_events_beyond_a_turn_and_a_queue_is_applied_whole"),
    ("TURN_PAUSE_MIN", "a_herd_of_events_makes_few_snapshots"),
    ("TURN_PAUSE_MAX", "an_override_that_ends_by_itself_is_gone_after_its_time"),
    ("OUTCOME_SLOTS_MAX", "a_full_intake_drops_strangers_and_keeps_adding_to_those_it_has"),
    ("REPORT_SLOTS_MAX", "a_full_intake_drops_strangers_and_keeps_adding_to_those_it_has"),
    ("DECISIONS_KEPT_MAX", "decisions_are_kept_and_told_each_once"),
    ("SAVE_RETRY", "a_disk_that_does_not_work_stops_nothing_and_is_tried_again"),
    ("HEARD_SAVE_PERIOD", "words_that_backends_repeat_are_saved_once_a_second_and_orders_at_once"),
    ("SNAPSHOT_FILE_BYTES_MAX", "a_snapshot_of_no_use_is_put_aside_and_nobody_waits_for_what_is_no_file"),
    ("SAVE_PAUSE_MIN", "a_snapshot_has_to_wait_a_second_after_the_last_one"),
    ("SAVE_PAUSE_TIMES", "a_snapshot_has_to_wait_a_second_after_the_last_one"),
    ("CONNECTIONS_WAITING_MAX", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("HANDSHAKES_PER_PEER_MAX", "handshakes_of_one_peer_wait_for_each_other_and_are_given_up_at_the_deadline"),
    ("CONNECTIONS_BELOW_PERCENT", "near_the_ceiling_newcomers_are_turned_away_and_who_has_a_stream_keeps_it"),
    ("STREAMS_BELOW_PERCENT", "near_the_ceiling_newcomers_are_turned_away_and_who_has_a_stream_keeps_it"),
    ("CEILING_LOOK_PERIOD", "near_the_ceiling_newcomers_are_turned_away_and_who_has_a_stream_keeps_it"),
    ("GOAWAY_WAIT", "who_never_asks_is_told_to_go_away_at_the_deadline_and_cut"),
    ("CONTROL_FRAMES_MAX", "a_budget_comes_back_with_time_and_with_messages_and_never_beyond_its_maximum"),
    ("CONTROL_FRAMES_PERIOD", "a_budget_comes_back_with_time_and_with_messages_and_never_beyond_its_maximum"),
    ("CONTROL_FRAMES_PER_STREAM", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("RESETS_PENDING_MAX", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("HEADER_LIST_BYTES_MAX", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("STREAM_WINDOW_BYTES", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("CONNECTION_WINDOW_BYTES", "whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing"),
    ("SEND_BUFFER_BYTES_MAX", "a_client_that_does_not_read_delays_nobody_and_finds_the_newest_list_when_it_does"),
    ("OTHER_STREAMS_MAX", "above_the_caps_of_streams_a_request_is_refused_and_told_when_to_come_back"),
    ("PUSHBACK", "above_the_caps_of_streams_a_request_is_refused_and_told_when_to_come_back"),
    ("REQUEST_WAIT_MAX", "a_request_that_does_not_come_to_its_end_is_ended"),
    ("SUBSCRIPTIONS_PER_STREAM_MAX", "there_is_an_end_to_what_one_stream_may_subscribe"),
    ("SUBSCRIPTIONS_PER_CONNECTION_MAX", "there_is_an_end_to_what_one_connection_may_subscribe"),
    ("PEER_SUBSCRIPTIONS_PER_STREAM", "there_is_an_end_to_what_one_peer_may_subscribe_on_all_its_connections"),
    ("COHORTS_PER_SERVICE_MAX", "clients_from_more_places_than_there_can_be_share_the_lists_of_an_unknown_place"),
    ("ERRORS_WAITING_MAX", "a_client_that_does_not_read_its_errors_costs_no_more_for_it"),
    (
        "HELD_ENDPOINTS_PER_CONNECTION_MAX",
        "what_clients_bring_on_one_connection_has_an_end_and_is_forgotten_if_nobody_asks_for_it",
    ),
    ("HELD_WAIT_MAX", "what_clients_bring_on_one_connection_has_an_end_and_is_forgotten_if_nobody_asks_for_it"),
    ("HELD_LISTS_MAX", "bad_picks_end_their_stream_with_a_reason"),
    ("HELLO_BYTES_MAX", "bad_picks_end_their_stream_with_a_reason"),
    ("PICK_REQUEST_BYTES_MAX", "a_message_may_be_as_large_as_the_list_gives_rise_to_and_no_larger"),
    ("OUTCOME_BYTES_MAX", "a_message_may_be_as_large_as_the_list_gives_rise_to_and_no_larger"),
    (
        "UNFINISHED_BYTES_PER_CONNECTION_MAX",
        "unfinished_messages_of_a_connection_have_a_limit_together_and_make_room_when_they_go",
    ),
    ("MESSAGES_MAX", "a_client_has_so_many_messages_in_a_period_and_one_for_each_that_it_is_sent"),
    ("MESSAGES_PER_SERVICE", "a_client_has_so_many_messages_in_a_period_and_one_for_each_that_it_is_sent"),
    ("MESSAGES_PERIOD", "a_client_has_so_many_messages_in_a_period_and_one_for_each_that_it_is_sent"),
    ("ADMITTED_BYTES_PER_SECOND", "a_few_go_at_once_the_others_in_turn_and_nobody_waits_too_long"),
    ("ADMITTED_BYTES_AT_ONCE", "a_few_go_at_once_the_others_in_turn_and_nobody_waits_too_long"),
    ("FIRST_LIST_COST_BYTES", "a_few_go_at_once_the_others_in_turn_and_nobody_waits_too_long"),
    ("ADMISSION_WAIT_MAX", "who_would_wait_too_long_for_a_first_list_is_told_when_to_come_back_and_who_has_it_is_not"),
    ("UNREAD_MAX", "a_stream_that_is_not_read_for_long_ends_and_its_connection_goes_on"),
    ("HELLO_WAIT_MAX", "the_first_message_is_a_hello_and_a_good_one"),
    ("HEARTBEAT_PERIOD", "ticks_follow_as_heartbeats"),
    ("FLEET_PERIOD", "an_overload_is_told_before_the_heartbeat_and_to_newcomers_with_the_list"),
    ("NEWCOMER_WAIT", "after_a_start_newcomers_wait_for_others_to_be_heard_and_those_that_come_back_do_not"),
    ("OUTCOME_COUNT_MAX", "absurd_counts_and_addresses_are_refused"),
    ("REPORT_BYTES_MAX", "bad_registrations_are_refused_with_a_reason"),
    ("REPORTED_OVERRIDES_MAX", "a_word_that_orders_nothing_or_nobody_is_refused"),
    ("CLOCKS_DIFFER_MAX", "bad_reports_are_refused_and_their_stream_lives_on"),
    ("REPORT_PERIOD_MIN", "a_flood_of_reports_is_read_and_the_last_one_counts"),
    ("REGISTRATION_PERIOD_MIN", "a_backend_that_was_stopped_for_a_lease_is_back_with_its_first_reports"),
    ("REGISTRATIONS_PER_PEER_MAX", "backends_of_one_address_have_an_end_and_the_next_is_told_when_to_come_back"),
    ("REPORT_LOOK_PERIOD", "a_backend_learns_of_its_overrides_and_a_balancer_learns_them_back"),
    ("PROBE_LOOK_PERIOD", "a_wish_for_a_check_is_granted_at_once_and_a_removed_endpoint_is_left_alone"),
    ("METRICS_CONNECTIONS_PER_PEER_MAX", "a_peer_that_only_connects_takes_a_part_of_the_listener_and_not_for_long"),
    ("METRICS_HEAD_WAIT", "a_peer_that_only_connects_takes_a_part_of_the_listener_and_not_for_long"),
    (
        "METRICS_PERIOD_MIN",
        "however_many_ask_the_page_is_rendered_ten_times_a_second_and_is_never_older_than_the_question",
    ),
    ("OPEN_PERIOD_MIN", "files_of_no_use_are_opened_once_a_second_by_all_who_want_them_and_used_when_they_are_mended"),
    ("STOP_WAIT_MAX", "a_disk_that_hangs_does_not_keep_a_balancer_from_its_end"),
    ("SERVICE_LABELS_MAX", "past_the_limit_new_services_share_a_label_and_old_ones_keep_theirs"),
    ("TOKEN_BYTES_MIN", "what_is_no_secret_is_no_token"),
    ("TOKEN_BYTES_MAX", "what_is_no_secret_is_no_token"),
    ("DNS_ALIASES_MAX", "aliases_are_followed_within_a_reply_and_beyond_it"),
    ("DNS_TARGETS_MAX", "a_thousand_records_come_over_tcp_and_too_many_targets_are_refused_whole"),
    ("DNS_EMPTY_TRIES", "an_absence_is_believed_only_when_it_was_said_again_and_again"),
];

/// Those that no test reaches, and why not.
const NOT_REACHED: &[(&str, &str)] = &[
    ("HANDSHAKES_MAX", "it takes five peers with all their handshakes; the same semaphore as theirs"),
    ("DECISIONS_WAITING_MAX", "a reader that stalls behind a megabyte of windows"),
    ("SAVE_WAIT_MAX", "a disk that takes a second"),
    ("OVERRIDES_FILE_BYTES_MAX", "read by the same code as the snapshot, whose limit is reached"),
    ("CONFIG_FILE_BYTES_MAX", "a file of 32 MiB"),
    ("REFUSED_REASONS_MAX", "lines of a log"),
    ("CONFIG_LOOK_PERIOD", "a file system that tells of no changes"),
    ("CONFIG_QUIET", "time that a change takes, and a write in two halves that a test cannot time"),
    ("CONFIG_QUIET_WAIT_MAX", "an editor that writes for a second without a pause"),
    ("UNACKNOWLEDGED_LISTS_MAX", "forgets only what a client of ours never relies on"),
    ("ACK_WAIT", "what it shows is a word in a table"),
    ("METRICS_CONNECTIONS_MAX", "the same code as the cap of the other listeners"),
    ("METRICS_DEADLINE", "a timeout around a request"),
    ("SMALL_REQUEST_BYTES_MAX", "held by tonic"),
    ("ADMIN_REQUEST_BYTES_MAX", "held by tonic"),
    ("REGISTRATION_WAIT_MAX", "a timeout around a first message"),
    ("LAST_WORDS_WAIT", "a timeout before a reset that another test sees"),
    ("WATCH_PERIOD_MIN", "a health service that changes its mind ten times a second"),
    ("OPENED_MAX", "ten thousand reloads"),
    ("DNS_LOOKUPS_PER_SOURCE_MAX", "further ones wait, which nobody sees"),
    ("DNS_LOOKUPS_MAX", "further ones wait, which nobody sees"),
    ("DNS_REPLY_WAIT", "time that a test would have to spend"),
    ("DNS_ROUND_MAX", "time that a test would have to spend"),
];

/// Every limit of the balancer has a test that reaches it, or says why it has none.
pub(crate) fn limits_are_reached(house: &House) -> Vec<String> {
    let constants: Vec<_> = house
        .file(FILE)
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("pub(crate) const ")?.split(':').next())
        .collect();
    let is_test = |name: &str| {
        let start = format!("fn {name}(");
        house.rust.iter().any(|file| file.text.contains(&start))
    };
    let mut breaches = Vec::new();
    for constant in &constants {
        let is_listed = REACHED.iter().chain(NOT_REACHED).any(|(name, _)| name == constant);
        if !is_listed {
            breaches.push(format!("{FILE}: {constant} is not in tests/tidy/limits.rs, with a test that reaches it"));
        }
    }
    for (constant, test) in REACHED {
        if !is_test(test) {
            breaches.push(format!("tests/tidy/limits.rs: there is no test {test} that reaches {constant}"));
        }
    }
    for (constant, _) in REACHED.iter().chain(NOT_REACHED) {
        if !constants.contains(constant) {
            breaches.push(format!("tests/tidy/limits.rs: there is no limit {constant}"));
        }
    }
    breaches
}
