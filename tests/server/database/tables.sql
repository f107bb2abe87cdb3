-- responses 6
CREATE TABLE roost_responses (tenant TEXT NOT NULL, id TEXT NOT NULL, response {bytes} NOT NULL, history {bytes} NOT NULL, output {bytes} NOT NULL, is_background INTEGER NOT NULL DEFAULT 0, is_streamed INTEGER NOT NULL DEFAULT 0, is_running INTEGER NOT NULL DEFAULT 0, created DOUBLE PRECISION NOT NULL DEFAULT 0, num_bytes BIGINT NOT NULL DEFAULT 0, log_bytes BIGINT NOT NULL DEFAULT 0, model TEXT, request {bytes}, prompt {bytes}, conversation TEXT, input_items {bytes}, owner TEXT, fence BIGINT NOT NULL DEFAULT 0, lease_until DOUBLE PRECISION NOT NULL DEFAULT 0, num_deaths BIGINT NOT NULL DEFAULT 0, num_lone_deaths BIGINT NOT NULL DEFAULT 0, is_alone INTEGER NOT NULL DEFAULT 0, engine TEXT, exact_fence BIGINT NOT NULL DEFAULT 0, checkpoint TEXT, checkpoint_tokens BIGINT, PRIMARY KEY (tenant, id));
CREATE INDEX roost_responses_leases ON roost_responses (lease_until) WHERE is_running = 1;
CREATE INDEX roost_responses_running ON roost_responses (tenant, lease_until, num_bytes, log_bytes) WHERE is_running = 1;
CREATE INDEX roost_responses_owners ON roost_responses (owner) WHERE is_running = 1;
CREATE INDEX roost_responses_ended ON roost_responses (tenant, created, num_bytes) WHERE is_running = 0;
CREATE INDEX roost_responses_old ON roost_responses (created) WHERE is_running = 0;
CREATE TABLE roost_events (tenant TEXT NOT NULL, id TEXT NOT NULL, number BIGINT NOT NULL DEFAULT 0, first_event BIGINT NOT NULL DEFAULT 0, num_events BIGINT NOT NULL DEFAULT 0, first_token BIGINT NOT NULL DEFAULT 0, num_tokens BIGINT NOT NULL DEFAULT 0, delta {bytes} NOT NULL, events {bytes} NOT NULL, PRIMARY KEY (tenant, id, number));
CREATE TABLE roost_conversations (tenant TEXT NOT NULL, id TEXT NOT NULL, created BIGINT NOT NULL DEFAULT 0, metadata {bytes} NOT NULL, updated DOUBLE PRECISION NOT NULL DEFAULT 0, num_items BIGINT NOT NULL DEFAULT 0, num_bytes BIGINT NOT NULL DEFAULT 0, holder TEXT, locked_until DOUBLE PRECISION NOT NULL DEFAULT 0, PRIMARY KEY (tenant, id));
CREATE INDEX roost_conversations_age ON roost_conversations (updated);
CREATE INDEX roost_conversations_sizes ON roost_conversations (tenant, updated, num_bytes);
CREATE TABLE roost_conversation_items (tenant TEXT NOT NULL, conversation TEXT NOT NULL, position BIGINT NOT NULL DEFAULT 0, id TEXT NOT NULL, text {bytes} NOT NULL, PRIMARY KEY (tenant, conversation, id));
CREATE INDEX roost_conversation_items_list ON roost_conversation_items (tenant, conversation, position);
CREATE INDEX roost_conversation_items_ids ON roost_conversation_items (tenant, id);
-- batches 7
CREATE TABLE roost_files (tenant TEXT NOT NULL, id TEXT NOT NULL, created DOUBLE PRECISION NOT NULL DEFAULT 0, purpose TEXT NOT NULL, name TEXT NOT NULL, num_bytes BIGINT NOT NULL DEFAULT 0, num_lines BIGINT NOT NULL DEFAULT 0, url TEXT NOT NULL, expires DOUBLE PRECISION, is_whole INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, id));
CREATE INDEX roost_files_list ON roost_files (tenant, created, id) WHERE is_whole = 1;
CREATE INDEX roost_files_purposes ON roost_files (tenant, purpose, created, id) WHERE is_whole = 1;
CREATE INDEX roost_files_age ON roost_files (created);
CREATE INDEX roost_files_unfinished ON roost_files (created) WHERE is_whole = 0;
CREATE INDEX roost_files_expiries ON roost_files (expires) WHERE expires IS NOT NULL;
CREATE INDEX roost_files_sizes ON roost_files (tenant, num_bytes, num_lines);
CREATE TABLE roost_file_lines (tenant TEXT NOT NULL, file TEXT NOT NULL, number BIGINT NOT NULL DEFAULT 0, line {bytes} NOT NULL, PRIMARY KEY (tenant, file, number));
CREATE TABLE roost_file_order (tenant TEXT NOT NULL, file TEXT NOT NULL, segment BIGINT NOT NULL DEFAULT 0, offsets {bytes} NOT NULL, PRIMARY KEY (tenant, file, segment));
CREATE TABLE roost_batches (tenant TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL, model TEXT NOT NULL, url TEXT NOT NULL, input_file TEXT NOT NULL, output_file TEXT NOT NULL, error_file TEXT NOT NULL, time_window TEXT NOT NULL, metadata {bytes} NOT NULL, created DOUBLE PRECISION NOT NULL DEFAULT 0, expires DOUBLE PRECISION NOT NULL DEFAULT 0, ended DOUBLE PRECISION, num_lines BIGINT NOT NULL DEFAULT 0, num_completed BIGINT NOT NULL DEFAULT 0, num_failed BIGINT NOT NULL DEFAULT 0, output_expires_s DOUBLE PRECISION, input_tokens BIGINT NOT NULL DEFAULT 0, cached_tokens BIGINT NOT NULL DEFAULT 0, output_tokens BIGINT NOT NULL DEFAULT 0, next_line BIGINT NOT NULL DEFAULT 0, claimed DOUBLE PRECISION NOT NULL DEFAULT 0, output_bytes BIGINT NOT NULL DEFAULT 0, error_bytes BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (tenant, id));
CREATE INDEX roost_batches_list ON roost_batches (tenant, created, id);
CREATE INDEX roost_batches_ended ON roost_batches (created) WHERE status <> 'in_progress';
CREATE INDEX roost_batches_statuses ON roost_batches (status, tenant);
CREATE INDEX roost_batches_inputs ON roost_batches (tenant, input_file) WHERE status = 'in_progress';
CREATE INDEX roost_batches_waiting ON roost_batches (tenant, model, claimed, created, id) WHERE status = 'in_progress' AND next_line <= num_lines;
CREATE INDEX roost_batches_expiries ON roost_batches (expires) WHERE status = 'in_progress';
CREATE TABLE roost_batch_claims ( tenant TEXT NOT NULL, batch TEXT NOT NULL, number BIGINT NOT NULL, model TEXT NOT NULL, owner TEXT, fence BIGINT NOT NULL, lease_until DOUBLE PRECISION NOT NULL, num_refusals INTEGER NOT NULL DEFAULT 0, num_deaths INTEGER NOT NULL DEFAULT 0, num_lone_deaths INTEGER NOT NULL DEFAULT 0, lone_fence BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (tenant, batch, number) );
CREATE INDEX roost_batch_claims_due ON roost_batch_claims (tenant, model, lease_until);
CREATE INDEX roost_batch_claims_suspects ON roost_batch_claims (model, lease_until) WHERE num_deaths > 0;
CREATE INDEX roost_batch_claims_owners ON roost_batch_claims (owner);
CREATE TABLE roost_batch_turns ( tenant TEXT NOT NULL PRIMARY KEY, claimed DOUBLE PRECISION NOT NULL, num_turns BIGINT NOT NULL );
-- usage 1
CREATE TABLE roost_usage (day TEXT NOT NULL, tenant TEXT NOT NULL, num_requests BIGINT NOT NULL DEFAULT 0, prompt_tokens BIGINT NOT NULL DEFAULT 0, cached_tokens BIGINT NOT NULL DEFAULT 0, completion_tokens BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (day, tenant));
CREATE TABLE roost_usage_additions (replica TEXT NOT NULL, day TEXT NOT NULL, number BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (replica));
