Feature: What happens can be counted and read afterwards

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 5 ms

  @ORCHD-OBS-1
  Scenario: A task moves the counters of its life
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 7                |
    And the stream "story" ends with end
    Then the metrics are:
      | tasks_enqueued_total{pool_id="words",priority="interactive"}                        | 1 |
      | tasks_started_total{pool_id="words",replica_id="words-0",engine="mock"}             | 1 |
      | tasks_finished_total{result="done"}                                                 | 1 |
      | tokens_in_total{replica_id="words-0"}                                               | 5 |
      | tokens_out_total{replica_id="words-0",engine_version="mock-1"}                      | 7 |
      | latency_first_token_ms_count{pool_id="words",priority="interactive"}                | 1 |
      | latency_decode_ms_count{pool_id="words"}                                            | 1 |
      | placement_decisions_total{outcome="placed",pinned="false"}                          | 1 |
      | pool_ready{pool_id="words"}                                                         | 1 |
      | viewers                                                                             | 0 |

  @ORCHD-OBS-1
  Scenario: Canceled and refused tasks are counted by their reason
    Given its queue holds 1 task
    And the setting "streaming.disconnect_grace_ms" is 0
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "waiting" of priority batch
    And alice submits "refused" of priority interactive
    Then the metrics are:
      | queue_depth{pool_id="words",priority="batch"}                        | 1 |
      | queue_depth{pool_id="words",priority="interactive"}                  | 0 |
      | tasks_rejected_total{engine="mock",reason="ADMISSION_REJECT"}        | 1 |
      | admission_backpressure_events_total{engine="mock",policy="reject"}   | 1 |
      | viewers                                                              | 1 |
    When alice cancels "waiting"
    And the viewer "running" leaves
    And "running" is canceled
    Then the metrics are:
      | tasks_canceled_total{reason="client"}                       | 1 |
      | tasks_canceled_total{reason="disconnect"}                   | 1 |
      | tasks_finished_total{result="canceled"}                     | 2 |
      | queue_depth{pool_id="words",priority="batch"}               | 0 |

  @ORCHD-OBS-1
  Scenario: Restarts are counted by their cause
    Given its engine crashes after 2 tokens in generation 1
    And the setting "restart.backoff_ms" is 1
    When alice submits and streams "victim":
      | prompt | Once upon a time |
    And the stream "victim" ends with end
    And the pool "words" is ready after 1 restart
    Then the metrics are:
      | replica_restarts_total{pool_id="words",replica_id="words-0",cause="crashed"} | 1 |
      | tasks_finished_total{result="done"}                                          | 1 |

  @ORCHD-OBS-2
  Scenario: Being alive is answered also while nothing is ready
    Given its model takes 60000 ms to load
    When a stranger asks for "/healthz"
    Then the answer is 200
    And the answer says:
      | status | ok |

  @ORCHD-OBS-4 @ORCHD-HTTP-1
  Scenario: Each event of a task is one line of the log, with all that is needed to find it
    Given the daemon's log is kept
    When alice submits "story" with the header "X-Correlation-Id" "trace-4711":
      | prompt     | Once upon a time                     |
      | max_tokens | 30                                   |
      | session_id | 6e5d7a1b-93c0-4f7e-8d21-5b0c9a7f4e12 |
    And "story" is done
    Then the log tells of "story", in this order:
      | task_admitted |
      | task_started  |
      | task_done     |
    And each line of "story" says:
      | level                   | info                                 |
      | correlation_id          | trace-4711                           |
      | key_id                  | alice                                |
      | session_id              | 6e5d7a1b-93c0-4f7e-8d21-5b0c9a7f4e12 |
      | engine                  | mock                                 |
      | sampler_profile_version | v1                                   |
      | pool_id                 | words                                |
    And each line of "story" has:
      | time               |
      | job_id             |
      | engine_version     |
      | queue_position     |
      | predicted_start_ms |
      | human              |
    And the line task_done of "story" says:
      | tokens_in  | 5       |
      | tokens_out | 30      |
      | replica_id | words-0 |
    And the line task_done of "story" has:
      | decode_time_ms |

  @ORCHD-OBS-4
  Scenario: A cancel and a failure are told too
    Given its engine crashes after 0 tokens in generation 2
    And the setting "tasks.max_attempts" is 1
    And the daemon's log is kept
    When alice submits and streams "stopped":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "stopped" has received 1 token
    And alice cancels "stopped"
    And alice submits and streams "failed":
      | prompt | Once upon a time |
    And the stream "failed" ends with error WORKER_RESET
    Then the log tells of "stopped", in this order:
      | task_admitted |
      | task_started  |
      | task_canceled |
    And the log tells of "failed", in this order:
      | task_admitted |
      | task_started  |
      | task_failed   |
    And the line task_canceled of "stopped" says:
      | level | info     |
      | code  | CANCELED |
    And the line task_failed of "failed" says:
      | level | warn         |
      | code  | WORKER_RESET |

  @ORCHD-OBS-4 @ORCHD-HTTP-1
  Scenario: Each request that is refused is one line of the log, without the words of its answer
    Given bob may send 0.01 requests a second and 1 at once
    And the daemon's log is kept
    When alice submits "wrong" with the header "X-Correlation-Id" "asked-400":
      | prompt         | Once upon a time |
      | a_word_of_mine | 7                |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "a_word_of_mine"
    When a stranger asks for "/v1/pools" with the header "X-Correlation-Id" "asked-401"
    Then the answer is 401 UNAUTHORIZED
    When alice asks for "/v1/nothing" with the header "X-Correlation-Id" "asked-404"
    Then the answer is 404 NOT_FOUND
    When bob asks for "/v1/pools"
    And bob asks for "/v1/pools" with the header "X-Correlation-Id" "asked-429"
    Then the answer is 429 RATE_LIMITED
    And each of these refused requests is one line of the log:
      | correlation_id | level | status | code           | key_id | method | path        |
      | asked-400      | info  | 400    | INVALID_PARAMS | alice  | POST   | /v1/tasks   |
      | asked-401      | info  | 401    | UNAUTHORIZED   | null   | GET    | /v1/pools   |
      | asked-404      | info  | 404    | NOT_FOUND      | alice  | GET    | /v1/nothing |
      | asked-429      | info  | 429    | RATE_LIMITED   | bob    | GET    | /v1/pools   |
    And the log does not contain:
      | a_word_of_mine |
