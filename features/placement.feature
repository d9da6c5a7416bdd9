Feature: The client may say where its task runs

  Background:
    Given a pool "first" with 1 slot
    And its tokens take 10 ms
    And its queue holds 1 task
    And a pool "second" with 1 slot
    And its tokens take 10 ms
    And the pool "first" is ready
    And the pool "second" is ready

  @ORCHD-PLACE-1
  Scenario: Preferred pools are taken in their order, and another when they are full
    When alice submits "one":
      | prompt     | Once upon a time                             |
      | max_tokens | 3000                                         |
      | placement  | {"mode":"prefer","prefer_pools":["first"]}   |
    And "one" is running
    And alice submits "two":
      | prompt     | Once upon a time                             |
      | max_tokens | 3000                                         |
      | placement  | {"mode":"prefer","prefer_pools":["first"]}   |
    Then the answer says:
      | pool_id        | first |
      | queue_position | 0     |
    When alice submits "three":
      | prompt    | Once upon a time                                                    |
      | placement | {"mode":"prefer","prefer_pools":["first"],"allow_fallback":false}   |
    Then the answer is 429 ADMISSION_REJECT
    And the answer says:
      | pool_id | first |
    When alice submits "four":
      | prompt     | Once upon a time                             |
      | max_tokens | 2                                            |
      | placement  | {"mode":"prefer","prefer_pools":["first"]}   |
    Then the answer says:
      | pool_id | second |

  @ORCHD-PLACE-1
  Scenario: A pinned pool that is full is left only where that is allowed
    When alice submits "one" to pool "first":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "one" is running
    And alice submits "two" to pool "first":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice submits "three" to pool "first":
      | prompt | Once upon a time |
    Then the answer is 429 ADMISSION_REJECT
    When alice submits "four":
      | prompt     | Once upon a time                                            |
      | max_tokens | 2                                                           |
      | placement  | {"mode":"pin","pin_pool_id":"first","allow_fallback":true}  |
    Then the answer says:
      | pool_id | second |

  @ORCHD-PLACE-1 @ORCHD-HTTP-3
  Scenario: Pools that are avoided run nothing, and what leaves no pool is refused
    When alice submits "one":
      | prompt     | Once upon a time                          |
      | max_tokens | 2                                         |
      | placement  | {"mode":"auto","avoid_pools":["first"]}   |
    Then the answer says:
      | pool_id | second |
    When alice submits "two":
      | prompt    | Once upon a time                                   |
      | placement | {"mode":"auto","avoid_pools":["first","second"]}   |
    Then the answer is 503 REPLICA_EXHAUSTED
    And the answer says:
      | retriable               | true    |
      | details.pools.0.pool_id | first   |
      | details.pools.0.reason  | avoided |
    And the metrics are:
      | placement_decisions_total{outcome="refused",pinned="false"} | 1 |
      | placement_decisions_total{outcome="placed",pinned="false"}  | 1 |
    When alice submits "three":
      | prompt     | Once upon a time                                                          |
      | max_tokens | 2                                                                         |
      | placement  | {"mode":"auto","avoid_pools":["first","second"],"allow_fallback":true}    |
    Then the answer is 202
    When alice submits "four":
      | prompt    | Once upon a time                             |
      | placement | {"mode":"auto","require_device_mask":[0]}    |
    Then the answer is 503 REPLICA_EXHAUSTED

  @ORCHD-PLACE-1 @ORCHD-HTTP-4
  Scenario Outline: A placement that says two things is refused: <placement>
    When alice submits "story":
      | prompt    | Once upon a time |
      | placement | <placement>      |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "<part>"

    Examples:
      | placement                                                             | part                          |
      | {"mode":"prefer"}                                                     | needs placement.prefer_pools  |
      | {"mode":"auto","prefer_pools":["first"]}                              | goes with placement.mode      |
      | {"mode":"pin","pin_pool_id":"first","avoid_pools":["first"]}          | avoids it                     |
      | {"mode":"prefer","prefer_pools":["first"],"avoid_pools":["first"]}    | avoids it                     |
      | {"mode":"prefer","prefer_pools":["frist"]}                            | the nearest is first          |
      | {"mode":"auto","avoid_pools":["secnod"]}                              | the nearest is second         |
      | {"mode":"auto","require_device_mask":[]}                              | require_device_mask           |
