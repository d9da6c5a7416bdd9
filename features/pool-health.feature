Feature: A pool tells how it is and what went wrong

  @ORCHD-POOL-1
  Scenario: Pools are listed as they are configured, and looking starts nothing
    Given a pool "words" with 2 slots
    And a pool "lazy" with 3 slots
    And its model is loaded at first use
    And the pool "words" is ready
    When alice asks for "/v1/pools"
    Then the answer says:
      | pools.0.id          | words                                        |
      | pools.0.state       | ready                                        |
      | pools.0.slots_total | 2                                            |
      | pools.0.queue       | {"interactive":0,"batch":0,"capacity":256}   |
      | pools.1.id          | lazy                                         |
      | pools.1.state       | stopped                                      |
      | pools.1.ready       | false                                        |
      | pools.1.slots_total | 0                                            |

  @ORCHD-POOL-2
  Scenario: A busy pool shows its slots and its queue
    Given a pool "words" with 1 slot
    And its tokens take 10 ms
    And its queue holds 5 tasks
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "i1" of priority interactive
    And alice submits "b1" of priority batch
    And alice submits "b2" of priority batch
    And alice asks for "/v1/pools/words/health"
    Then the answer says:
      | live                  | true                                     |
      | ready                 | true                                     |
      | draining              | false                                    |
      | state                 | ready                                    |
      | engine_version        | mock-1                                   |
      | queue                 | {"interactive":1,"batch":2,"capacity":5} |
      | replicas.0.id         | words-0                                  |
      | replicas.0.state      | busy                                     |
      | replicas.0.slots_busy | 1                                        |
      | replicas.0.restarts   | 0                                        |
      | replicas.0.last_error | null                                     |
      | last_error            | null                                     |
    When alice cancels "running"
    And "b2" is done
    And alice asks for "/v1/pools/words/health"
    Then the answer says:
      | metrics.tasks_done    | 3 |
      | metrics.tasks_failed  | 0 |
      | replicas.0.slots_busy | 0 |

  @ORCHD-POOL-2 @ORCHD-POOL-4
  Scenario: A pool is loading until it has decoded for real
    Given a pool "heavy" with 1 slot
    And its model takes 60000 ms to load
    When alice asks for "/v1/pools/heavy/health"
    Then the answer says:
      | live             | true    |
      | ready            | false   |
      | state            | loading |
      | replicas.0.state | loading |
      | engine_version   | null    |

  @ORCHD-POOL-2 @ORCHD-GPU-3
  Scenario: Replicas share the pool's cards out, and a task may ask for them
    Given a pool "words" with 1 slot
    And it has 2 replicas
    And its devices are "gpu-0, gpu-1"
    And the pool "words" is ready with 2 replicas
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | replicas.0.devices.0 | gpu-0 |
      | replicas.1.devices.0 | gpu-1 |
    When alice submits "elsewhere":
      | prompt    | Once upon a time                          |
      | placement | {"mode":"auto","require_device_mask":[1]} |
    Then the answer is 503 REPLICA_EXHAUSTED
    When alice submits and streams "here":
      | prompt     | Once upon a time                              |
      | max_tokens | 2                                             |
      | placement  | {"mode":"auto","require_device_mask":[0,1,2]} |
    Then the stream "here" ends with end

  @ORCHD-POOL-3
  Scenario: After a crash the pool says why, comes back and works
    Given a pool "words" with 1 slot
    And its engine crashes after 3 tokens in generation 1
    And the setting "restart.backoff_ms" is 1
    When alice submits and streams "victim":
      | prompt | Once upon a time |
    And the stream "victim" ends with end
    And the pool "words" is ready after 1 restart
    And alice asks for "/v1/pools/words/health"
    Then the answer says:
      | live                        | true    |
      | ready                       | true    |
      | last_error.cause            | crashed |
      | replicas.0.restarts         | 1       |
      | replicas.0.last_error.cause | crashed |
    When alice submits and streams "next":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "next" ends with end

  @ORCHD-ADM-1 @ORCHD-POOL-4
  Scenario: While a pool restarts, tasks queue for it
    Given a pool "words" with 1 slot
    And its engine crashes after 0 tokens in generation 1
    And the setting "restart.backoff_ms" is 300
    And the pool "words" is ready
    When alice submits and streams "victim":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And the pool "words" is restarting
    And alice submits and streams "patient":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 200
    And the stream "victim" ends with end
    And the stream "patient" ends with end

  @ORCHD-POOL-4 @ORCHD-OBS-3
  Scenario: A pool that cannot start is unavailable, and with it the daemon is not ready
    Given a pool "broken" with 1 slot
    And its model takes 20 ms to load
    And its engine never loads its model
    And the setting "restart.backoff_ms" is 1
    And the setting "restart.breaker_failures" is 2
    When the pool "broken" is unavailable
    And alice asks for "/v1/pools/broken/health"
    Then the answer says:
      | live             | false        |
      | ready            | false        |
      | replicas.0.state | circuit_open |
    When a stranger asks for "/readyz"
    Then the answer is 503
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same

  @ORCHD-OBS-3
  Scenario: One pool that takes work makes the daemon ready
    Given a pool "broken" with 1 slot
    And its model takes 20 ms to load
    And its engine never loads its model
    And the setting "restart.backoff_ms" is 1
    And the setting "restart.breaker_failures" is 2
    And a pool "words" with 1 slot
    When the pool "broken" is unavailable
    And a stranger asks for "/readyz"
    Then the answer is 200
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "story" ends with end
    And the started event of "story" says:
      | pool_id | words |

  @ORCHD-PLACE-1
  Scenario: A pool of several replicas spreads its work
    Given a pool "wide" with 1 slot
    And it has 3 replicas
    And its tokens take 10 ms
    And the pool "wide" is ready with 3 replicas
    When alice submits 3 long tasks "a", "b", "c"
    Then "a", "b", "c" run on different replicas
